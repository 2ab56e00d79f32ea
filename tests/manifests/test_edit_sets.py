"""Edit sets as they come: TIMED's two layouts, CSV and Parquet, with the quirks that real files have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from manifests import EditSet, Fault, ManifestError, PromptPair, read_edit_set

HEADER = "old,new,positive1,gt1,positive2,gt2,negative1,gn1"


def read(*lines: str, header: str = HEADER) -> EditSet:
    return read_edit_set("\n".join([header, *lines]).encode(), name="edits.csv")


def faults(*lines: str, header: str = HEADER) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read(*lines, header=header)
    return [str(fault) for fault in caught.value.faults]


def test_pairs_are_read_with_quotes_commas_and_capitals_as_they_stand() -> None:
    found = read(
        'A bench,A striped bench,"A bench, pixel art","A striped bench, pixel art","A ""garden"" bench",'
        '"A striped ""garden"" bench",A stool,A striped stool',
        "two mugs,two chipped mugs,a shelf of mugs,a shelf of chipped mugs,,,Mugshot, Chipped mugshot ",
    )
    first, second = found.edits
    assert first.positives == (
        PromptPair("A bench, pixel art", "A striped bench, pixel art"),
        PromptPair('A "garden" bench', 'A striped "garden" bench'),
    )
    assert (second.source, second.destination) == ("two mugs", "two chipped mugs")
    assert second.positives == (PromptPair("a shelf of mugs", "a shelf of chipped mugs"),)
    assert second.negatives == (PromptPair("Mugshot", "Chipped mugshot"),)
    assert found.left_out == ()
    assert found.rows == 2


def test_what_cannot_be_used_is_reported_by_row_and_the_others_go_on() -> None:
    found = read(
        "A bench,A striped bench,Benches,Striped benches,A Park Bench,a park bench,A stool,A striped stool",
        "A lamp,a LAMP,Lamps,Lit lamps,,,A torch,A lit torch",
        "A cart,,Carts,Red carts,,,A sled,A red sled",
        "A kite,A torn kite,Kites,Torn kites,A box kite,,A flag,A torn flag",
        "A gate,A rusty gate,Gates, rusty, ones,,,A door,A rusty door",
        "A bench,A striped bench,Benches,Striped benches,,,A stool,A striped stool",
    )
    assert [edit.source for edit in found.edits] == ["A bench", "A kite"]
    assert found.rows == 6
    assert [(fault.row, fault.line, fault.column) for fault in found.left_out] == [
        (1, 2, "positive2"),
        (2, 3, None),
        (3, 4, "new"),
        (4, 5, "gt2"),
        (5, 6, None),
        (6, 7, None),
    ]
    said = [fault.message for fault in found.left_out]
    assert "the same prompt as gt2" in said[0]
    assert "are the same prompt" in said[1]
    assert "is empty" in said[2]
    assert "has 9 cells where the header has 8" in said[4]
    assert "repeats the edit of row 1" in said[5]
    assert len(found.edits[1].positives) == 1


def test_the_gender_layout_says_what_its_examples_should_become() -> None:
    found = read(
        "an usher,a female usher,A photo of an usher,,A sketch of an usher,An usher waving,a helper",
        header="old,new,validation,,ex1,ex2,ex3",
    )
    (edit,) = found.edits
    assert edit.positives == (
        PromptPair("A sketch of an usher", "A sketch of a female usher"),
        PromptPair("An usher waving", "a female usher waving"),
    )
    assert edit.negatives == ()
    assert [str(fault) for fault in found.left_out] == [
        "row 1 (line 2), column 'ex3': ('a helper') does not hold 'an usher'; the example is left out"
    ]


def test_only_whole_words_of_an_example_are_replaced() -> None:
    found = read("a cat,a wet cat,a catalogue and a cat", header="old,new,ex1")
    assert found.edits[0].positives == (PromptPair("a catalogue and a cat", "a catalogue and a wet cat"),)


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    text = "\n".join([HEADER, "A bench,A striped bench,Benches,Striped benches,,,A stool,A striped stool"])
    (tmp_path / "e.csv").write_text(text)
    table = pa_csv.read_csv(tmp_path / "e.csv")
    pq.write_table(table.append_column("Unnamed: 8", pa.array([None], pa.string())), tmp_path / "e.parquet")
    one, other = read_edit_set(tmp_path / "e.csv"), read_edit_set(tmp_path / "e.parquet")
    assert one.edits == other.edits
    assert one.digest == other.digest


def test_a_parquet_column_without_a_single_text_leaves_its_pairs_out(tmp_path: Path) -> None:
    columns = {
        "old": ["a kite"],
        "new": ["a torn kite"],
        "positive1": ["kites"],
        "gt1": pa.nulls(1),
        "negative1": ["a"],
    }
    pq.write_table(pa.table({**columns, "gn1": ["b"]}), tmp_path / "e.parquet")
    found = read_edit_set(tmp_path / "e.parquet")
    assert found.edits[0].positives == ()
    assert [fault.column for fault in found.left_out] == ["gt1"]


def test_a_set_is_kept_as_it_was_used() -> None:
    found = read(
        "A bench,A striped bench,Benches,Striped benches,,,A stool,A striped stool",
        "A kite,A torn kite,Kites,Torn kites,A box kite,A torn box kite,,",
    )
    again = read_edit_set(found.to_bytes())
    assert again.edits == found.edits
    assert again.digest == found.digest


def test_the_digest_is_of_the_edits_in_their_order() -> None:
    one, other = "A bench,A striped bench,Benches,Striped benches,,,,", "A kite,A torn kite,Kites,Torn kites,,,,"
    assert read(one, other).digest != read(other, one).digest
    assert read(one).digest != read(one.replace("Striped benches", "Striped seats")).digest


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("old,positive1,gt1", ["column 'new'", "is missing"]),
        ("old,new", ["no prompts to test"]),
        ("old,new,positive1,gt2", ["'gt2'", "no partner 'positive2'", "no partner 'gt1'"]),
        ("old,new,positive1,gt1,positive1", ["'positive1'", "is there 2 times"]),
        ("prompt,edit", ["is not a column of an edit set", "has no header"]),
        ("old,new,positive1,gt1,remark", ["'remark'", "is not a column"]),
    ],
)
def test_a_file_that_is_no_edit_set_is_refused_with_all_that_is_wrong(header: str, said: list[str]) -> None:
    text = "\n".join(faults(",".join(["a"] * (header.count(",") + 1)), header=header))
    assert [part for part in said if part not in text] == []


def test_a_set_without_a_usable_edit_names_every_row() -> None:
    found = faults("A lamp,A lamp,,,,,,", ",x,,,,,,")
    assert [fault.partition(":")[0] for fault in found] == ["row 1 (line 2)", "row 2 (line 3), column 'old'"]
    assert faults() == ["file: has no rows; give at least one edit"]


def test_what_cannot_be_taken_apart_is_no_single_row() -> None:
    assert "past row 1" in faults("A bench,A striped bench,,,,,,", 'A "kite,"A torn,')[0]


def test_a_further_check_leaves_edits_out_with_their_lines() -> None:
    def check(prompts: Sequence[tuple[int, str, str]]) -> Iterable[Fault]:
        return [Fault(row, "new", "lacks a word") for row, _, destination in prompts if "kite" in destination]

    text = "\n".join([HEADER, "A kite,A torn kite,Kites,Torn kites,,,,", "A bench,A wet bench,Benches,Wet benches,,,,"])
    found = read_edit_set(text.encode(), checker=check)
    assert [edit.source for edit in found.edits] == ["A bench"]
    assert [str(fault) for fault in found.left_out] == ["row 1 (line 2), column 'new': lacks a word"]


def test_prompts_that_are_too_long_take_their_pair_or_their_edit_along() -> None:
    found = read(
        "A kite,A torn kite,Kites,Torn kites,A box kite,A torn box kite,A flag,A torn flag",
        "A bench,A wet bench,Benches,Wet benches,,,,",
    )
    less = found.without({"Torn kites": "'Torn kites' is long", "A wet bench": "'A wet bench' is long"})
    assert [edit.positives for edit in less.edits] == [(PromptPair("A box kite", "A torn box kite"),)]
    assert [fault.row for fault in less.left_out] == [1, 2]
    with pytest.raises(ManifestError, match="the edit is left out"):
        found.without({"A kite": "long", "A bench": "long"})


def test_the_shipped_example_is_whole() -> None:
    found = read_edit_set(Path(str(files("manifests") / "data" / "demo_edits.csv")))
    assert len(found.edits) == 10
    assert found.left_out == ()
    assert {(len(edit.positives), len(edit.negatives)) for edit in found.edits} == {(5, 5)}
