"""Shards: what is in the key and what is not, and that no damaged object is ever reused."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import ConfigError, ExitCode, exit_code_of
from jobs.images.cells import audit_cells, check_held_out, shards_of
from jobs.images.shards import Shard, ShardError, ShardSpec, image_seed
from jobs.images.variants import Variant
from tests.jobs.helpers import RECIPE, config, manifest, spec


def shard(of: ShardSpec) -> Shard:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(of.count, 8)).astype(np.float32)
    pictures = [bytes([i]) * 9 if i < of.pictures else None for i in range(of.count)]
    return Shard(of, embeddings, np.array([0, 1, 0, 2], np.uint8), pictures, {"seconds": 1.5})


def test_a_shard_reads_back_as_it_was_written() -> None:
    written = shard(spec())
    read = Shard.from_bytes(written.to_bytes(), spec())
    np.testing.assert_array_equal(read.embeddings, written.embeddings)
    np.testing.assert_array_equal(read.statuses, written.statuses)
    assert list(read.pictures) == list(written.pictures)
    assert read.provenance == {"seconds": 1.5}


def test_the_digest_is_stable_across_machines_and_releases() -> None:
    # A golden value: whoever changes it makes every stored shard worthless, and must raise SHARD_SCHEMA.
    assert spec().digest == "08675e36bd82e749f3fa97a0ab08acf6e94fbe3c3217dea19b6a2e3924250b70"


@pytest.mark.parametrize(
    "changes",
    [{"operator": "o"}, {"stream": "calibration"}, {"prompt": "A painting of a nurse"}, {"first": 4}, {"count": 3}]
    + [
        {"recipe": replace(RECIPE, **{name: value})}
        for name, value in {
            "model": "x", "classifier": "x", "scheduler": "pndm", "steps": 11, "guidance_scale": 3.5, "height": 40,
            "width": 40, "dtype": "bfloat16", "negative_prompt": "x", "safety_checker": False, "seed": 1,
            "versions": (("torch", "3.0"),), "schema": 99,
        }.items()
    ],
    ids=str,
)  # fmt: skip
def test_all_that_decides_pixels_is_in_the_key(changes: dict[str, object]) -> None:
    assert spec(**changes).digest != spec().digest


def test_how_many_pictures_are_kept_is_not_in_the_key_but_too_few_are_not_enough() -> None:
    few, many = spec(pictures=1), spec(pictures=3)
    assert few.digest == many.digest
    data = shard(few).to_bytes()
    assert Shard.from_bytes(data, few)
    with pytest.raises(ShardError, match="keeps 1 pictures"):
        Shard.from_bytes(data, many)
    assert Shard.from_bytes(shard(many).to_bytes(), few)


def test_a_shard_of_another_key_is_refused() -> None:
    with pytest.raises(ShardError, match="another key"):
        Shard.from_bytes(shard(spec()).to_bytes(), spec(prompt="A painting of a nurse"))


def test_truncation_anywhere_is_seen() -> None:
    data = shard(spec()).to_bytes()
    for length in range(0, len(data), 37):
        with pytest.raises(ShardError):
            Shard.from_bytes(data[:length], spec())


def test_no_flipped_bit_changes_what_is_read() -> None:
    written = shard(spec())
    data = written.to_bytes()
    noticed = 0
    for at in range(0, len(data), 5):
        damaged = bytearray(data)
        damaged[at] ^= 1
        try:
            read = Shard.from_bytes(bytes(damaged), spec())
        except ShardError:
            noticed += 1
        else:
            # A flip in padding, or in what Parquet repeats, may pass; all that is read is then what it was.
            assert read.provenance == written.provenance
            np.testing.assert_array_equal(read.embeddings, written.embeddings)
            np.testing.assert_array_equal(read.statuses, written.statuses)
            assert list(read.pictures) == list(written.pictures)
    assert noticed > len(data) // 5 // 2


def test_a_shard_without_a_checksum_of_its_footer_is_read() -> None:
    """As they were stored before there was one."""
    written = shard(spec())
    table = pq.read_table(pa.BufferReader(written.to_bytes()))
    footer = {k: v for k, v in table.schema.metadata.items() if k != b"evenhand.footer_sha256"}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(footer), sink)
    assert Shard.from_bytes(bytes(sink.getvalue()), spec()).provenance == written.provenance


def test_a_damaged_shard_is_the_stores_fault_and_may_be_retried() -> None:
    with pytest.raises(ShardError, match="the same command makes it again") as caught:
        Shard.from_bytes(b"torn", spec())
    assert exit_code_of(caught.value) is ExitCode.STORAGE


def test_seeds_are_common_to_base_and_edit_and_to_nothing_else() -> None:
    assert spec().seeds() == spec(operator="o").seeds()
    others = [spec(prompt="A painting of a nurse"), spec(stream="calibration"), spec(first=4)]
    assert all(not set(spec().seeds()) & set(other.seeds()) for other in others)
    assert image_seed(0, "audit", "p", 0) != image_seed(1, "audit", "p", 0)
    assert 0 <= image_seed(0, "audit", "p", 0) < 2**63


def test_more_images_only_append_blocks() -> None:
    cells = {n: audit_cells(manifest("CEO", "nurse"), config(images_per_cell=n)) for n in (50, 150)}
    small, large = (list(shards_of(cells[n], RECIPE, Variant.plain(), config(images_per_cell=n))) for n in (50, 150))
    assert {s.digest for s in small} < {s.digest for s in large}
    assert sum(s.count for s in large if s.prompt == "A painting of a CEO") == 150


def test_any_number_of_images_is_cut_into_blocks_the_last_one_shorter() -> None:
    def cut(images: int) -> list[ShardSpec]:
        run = config(images_per_cell=images, shard_images=50)
        found = shards_of(audit_cells(manifest("CEO"), run), RECIPE, Variant.plain(), run)
        return [s for s in found if s.prompt == "A painting of a CEO"]

    assert [(s.first, s.count) for s in cut(60)] == [(0, 50), (50, 10)]
    assert [s.indices for s in cut(60)] == [tuple(range(50)), tuple(range(50, 60))]
    small, large = ([s.digest for s in cut(n)] for n in (60, 100))
    assert large[0] == small[0]
    assert large[1] not in small


def test_rendered_prompts_of_edit_and_audit_may_not_meet() -> None:
    # "{source} working" of "a CEO" is "{source}" of the profession whose source is "a CEO working".
    with pytest.raises(ConfigError, match="a CEO working"):
        check_held_out(manifest("CEO", "CEO working"), config())
