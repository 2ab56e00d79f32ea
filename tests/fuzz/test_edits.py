"""Operators and mixtures: headers that lie, tensors that are none, names with `..`, and what serves them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra.storage import StorageSettings
from jobs.audit import read_edit
from jobs.exports.mixture.pipeline import _read as read_for_serving
from jobs.exports.mixture.route import component_of
from jobs.models.files import safetensors_header
from jobs.models.sources import open_safetensors
from tests.fuzz.judging import judged, untouched
from tests.fuzz.profiles import inputs
from tests.fuzz.strategies import DEEP, broken_bytes, broken_json, json_text, safetensors_file
from time_ops import EditError, EditOperator, Mixture
from time_ops.edit_statistics import Statistics
from time_ops.records import EditRecord, SolveInputs
from time_ops.rows import TokenRows

STEP = SolveInputs((EditRecord("a CEO", (("a female CEO", 1.0),), 0.1),), (EditRecord("", (("", 1.0),), 0.2),))
SHIFTED = EditOperator(torch.eye(4, dtype=torch.float64) * 1.5, (STEP,), 3.0)
MIXTURE = Mixture.of(
    {"female": SHIFTED, "male": EditOperator.identity(4)}, [0.5, 0.5], {"a CEO": [0.2, 0.8]}
).to_bytes()
STATISTICS = Statistics(torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64), STEP.edits, ()).to_bytes()


def operator_bytes(folder: Path) -> bytes:
    return SHIFTED.save(folder / "operator.safetensors").read_bytes()


@pytest.fixture(scope="module")
def operator(tmp_path_factory: Any) -> bytes:
    return operator_bytes(tmp_path_factory.mktemp("edit"))


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def both_ways(place: Path, data: bytes) -> None:
    path = place / "edit.safetensors"
    path.write_bytes(data)
    with untouched(place):
        for read in (EditOperator.load, Mixture.load, partial(read_edit, settings=StorageSettings())):
            reader: Any = read
            judged("operators and mixtures", partial(reader, str(path)), says=str(path), size=len(data))
        judged("safetensors headers", lambda: open_safetensors(path), says="edit.safetensors", size=len(data))
        judged("mixtures that are served", lambda: read_for_serving(path), size=len(data), also=(ValueError,))


@st.composite
def edits(draw: Any, wholes: list[bytes]) -> bytes:
    """A file whose bytes are broken, or whose header says something else, in JSON or in the JSON inside."""
    whole = draw(st.sampled_from(wholes))
    header, data = parts(whole)
    kind = draw(st.sampled_from(("bytes", "header", "inside", "inside", "length", "deep")))
    if kind == "bytes":
        return draw(broken_bytes(whole))
    if kind == "length":
        size = draw(st.sampled_from((0, 7, 2**31, 2**62, 2**63, 2**64 - 1, 10**8 + 1)))
        return safetensors_file(json.dumps(header).encode(), data, size)
    if kind == "deep":
        return safetensors_file(json.dumps(header).replace("0.1", DEEP).encode(), data)
    if kind == "header":
        return safetensors_file(json.dumps(draw(broken_json(header))).encode(), data)
    inside = json.loads(header["__metadata__"]["evenhand"])
    said = draw(st.sampled_from((json.dumps(draw(broken_json(inside))), DEEP, "", "[]", '"x"')))
    header["__metadata__"]["evenhand"] = said
    return safetensors_file(json.dumps(header).encode(), data)


def test_operators_and_mixtures(tmp_path_factory: Any, operator: bytes) -> None:
    place = tmp_path_factory.mktemp("edits")

    @given(edits([operator, MIXTURE]))
    @inputs(100)
    def hold(data: bytes) -> None:
        both_ways(place, data)

    hold()


NAMES = ("../../x", "/etc/passwd", "a/../b", "", ".", "\x00", "__metadata__", "x" * 5000, "\ud800")
SHAPES = ([], [0], [-1], [2**62, 4], [2**32, 2**32], [1.5], ["a"], None, [[1]], [4, 4], [4] * 40)
OFFSETS = ([0, 128], [0, 2**62], [-1, 8], [8, 0], [0], None, [0.5, 1], [2**70, 2**71], "x")


@given(
    st.sampled_from(NAMES),
    st.sampled_from(SHAPES),
    st.sampled_from(OFFSETS),
    st.sampled_from(("F64", "F8", "", "I4", None)),
)
@inputs(60)
def test_headers_of_any_names_shapes_and_offsets(
    tmp_path_factory: Any, name: str, shape: Any, offsets: Any, dtype: Any
) -> None:
    header = {name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
    both_ways(tmp_path_factory.mktemp("edit"), safetensors_file(json.dumps(header).encode(), b"\0" * 128))


@given(st.sampled_from((0, 7, 10**8 + 1, 2**31, 2**62, 2**63, 2**64 - 1)), st.binary(max_size=20))
@inputs(20)
def test_headers_of_any_length(size: int, data: bytes) -> None:
    import io

    stream = io.BytesIO(safetensors_file(b"", data, size))
    judged("safetensors headers", lambda: safetensors_header(stream), also=(ValueError,))


@given(edits([MIXTURE]) | broken_bytes(STATISTICS) | st.binary(max_size=50))
@inputs(40)
def test_statistics_and_rows_of_workers(data: bytes) -> None:
    judged("statistics", lambda: Statistics.from_bytes(data), size=len(data))
    judged("statistics", lambda: TokenRows.from_bytes(data), size=len(data))


ROUTE = {
    "route": {"version": 1},
    "weights": {"female": 0.5, "male": 0.5},
    "professions": {"a CEO": {"female": 0.2, "male": 0.8}},
    "components": [{"label": "female"}, {"label": "male"}],
}


@given(json_text(ROUTE), st.integers(0, 9))
@inputs(50)
def test_mixture_json_that_is_served(tmp_path_factory: Any, data: bytes, seed: int) -> None:
    place = tmp_path_factory.mktemp("served")
    (place / "mixture.json").write_bytes(data)
    # It is a file of the standard library alone, which is copied into checkpoints: its own error is ValueError.
    judged("mixtures that are served", lambda: component_of(seed, "a CEO", 0, place), also=(ValueError,))


def test_what_is_broken_here_is_whole_before(tmp_path: Path) -> None:
    assert EditOperator.load(_written(tmp_path, operator_bytes(tmp_path))).digest == SHIFTED.digest
    assert Mixture.from_bytes(MIXTURE).labels == ("female", "male")
    assert Statistics.from_bytes(STATISTICS).edits == STEP.edits
    (tmp_path / "mixture.json").write_text(json.dumps(ROUTE))
    assert component_of(3, "", 0, tmp_path) in ("female", "male")


def test_weights_that_are_none_are_refused_by_the_files_name() -> None:
    header, data = parts(MIXTURE)
    inside = json.loads(header["__metadata__"]["evenhand"])
    header["__metadata__"]["evenhand"] = json.dumps({**inside, "weights": []})
    with pytest.raises(EditError, match=r"mixture\.safetensors is damaged: .*weights"):
        Mixture.from_bytes(safetensors_file(json.dumps(header).encode(), data), "mixture.safetensors")


def test_metadata_that_is_no_text_is_refused() -> None:
    header, data = parts(MIXTURE)
    header["__metadata__"]["evenhand"] = {}
    with pytest.raises(EditError):
        Mixture.from_bytes(safetensors_file(json.dumps(header).encode(), data))


def _written(folder: Path, data: bytes) -> Path:
    (folder / "o.safetensors").write_bytes(data)
    return folder / "o.safetensors"
