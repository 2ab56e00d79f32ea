"""Names that become keys: whatever they are, an object lies below its store or nowhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from infra.storage import LocalStore, StorageSettings, check_key, open_store, safe_name
from jobs.exports.mixture.parts import component_place
from jobs.runs.inputs import read_bytes
from jobs.scheduling.history import History
from jobs.scheduling.ticks import parse_tick
from tests.fuzz.judging import judged, untouched
from tests.fuzz.profiles import inputs
from tests.fuzz.strategies import odd_texts

PARTS = st.sampled_from(
    ("..", ".", "", "a", "b.json", "~", "\\", "\x00", "\n", "é", "\ud800", "x" * 300, ".evenhand-partial-x")
)
KEYS = st.one_of(odd_texts, st.lists(PARTS, max_size=5).map("/".join))


@given(KEYS)
@inputs(150)
def test_a_store_reads_and_writes_below_itself_alone(tmp_path_factory: Any, key: str) -> None:
    around = tmp_path_factory.mktemp("around")
    (around / "secret").write_text("secret")
    inside = around / "store"
    inside.mkdir()
    store = LocalStore(inside)
    outside = list(around.rglob("*"))
    for act in (store.get, store.stat, store.exists, lambda k: list(store.list(k)), lambda k: store.sub(k).get("x")):
        doing: Any = act
        judged("keys", lambda doing=doing: doing(key))
    judged("keys", lambda: store.put(key, b"data"))
    judged("keys", lambda: store.delete(key))
    assert [path for path in around.rglob("*") if inside not in path.parents] == outside
    assert (around / "secret").read_text() == "secret"


@given(odd_texts, odd_texts)
@inputs(150)
def test_any_text_is_one_part_of_a_key(one: str, other: str) -> None:
    names = [safe_name(text) for text in (one, other)]
    assert all(check_key(name) == name and "/" not in name for name in names)
    assert (names[0] == names[1]) == (one == other)
    place = judged("keys", lambda: component_place("diffusers", one))
    assert place is None or check_key(place) == place


@given(odd_texts, odd_texts)
@inputs(60)
def test_series_and_ticks(tmp_path_factory: Any, series: str, tick: str) -> None:
    store = LocalStore(tmp_path_factory.mktemp("history"))
    found = judged("keys", lambda: History(store, series))
    assert found is None or check_key(found.prefix).count("/") == 1
    judged("keys", lambda: parse_tick(tick))


@given(KEYS)
@inputs(60)
def test_paths_of_files(tmp_path_factory: Any, text: str) -> None:
    place = tmp_path_factory.mktemp("files")
    with untouched(place):
        judged("paths", lambda: read_bytes(f"{place}/{text}", StorageSettings()))
        judged("paths", lambda: read_bytes(f"~{text}", StorageSettings()))


def test_a_home_of_nobody_is_no_traceback(tmp_path: Path) -> None:
    for url in ("~nobody-of-this-name/m.csv", "~nobody-of-this-name://m.csv"):
        assert judged("paths", partial(read_bytes, url, StorageSettings()), says="~nobody") is None
    for url in ("~nobody-of-this-name", "file://[", "file://[/x"):
        assert judged("paths", partial(open_store, url), says=url) is None
