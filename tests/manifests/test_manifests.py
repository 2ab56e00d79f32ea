"""Reading, checking, writing: round trips, and every fault at once with its row."""

import contextlib
import io
import pickle
import time
from dataclasses import replace
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import (
    SCHEMA,
    Destination,
    Fault,
    Manifest,
    ManifestError,
    ManifestRow,
    Profession,
    check_with,
    manifest_bytes,
    manifest_table,
    read_manifest,
    resolved_shares,
    resolved_targets,
    write_manifest,
)

HEADER = "profession,source,destination,label,target,share,lam"
GOOD = [
    "CEO,a CEO,a female CEO,female,0.5,,",
    "CEO,a CEO,a male CEO,male,0.5,,",
    "nurse,a nurse,a male nurse,male,,,",
]
LABELS = ["female", "male"]


def text(*rows, header=HEADER):
    return "\n".join([header, *rows, ""]).encode()


def faults(source, labels=LABELS, **more):
    with pytest.raises(ManifestError) as caught:
        read_manifest(source, name="m.csv", labels=labels, **more)
    return caught.value.faults


def places(found):
    return [(fault.row, fault.column) for fault in found]


def parquet(columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def columns(**changed):
    base = {
        name: column.to_pylist() for name, column in zip(SCHEMA.names, manifest_table(sound()).columns, strict=True)
    }
    return {name: pa.array(values, SCHEMA.field(name).type) for name, values in base.items()} | changed


def sound():
    return read_manifest(text(*GOOD), labels=LABELS)


def test_good_manifest():
    manifest = sound()
    ceo, nurse = manifest.professions
    assert ceo == Profession(
        "CEO", "a CEO", (Destination("a female CEO", "female", 0.5), Destination("a male CEO", "male", 0.5))
    )
    assert nurse.labels == ("male",)
    assert resolved_targets(nurse, LABELS) == {"female": 0.5, "male": 0.5}
    assert resolved_shares(ceo) == (0.5, 0.5)
    assert resolved_shares(nurse) == (1.0,)
    assert manifest_table(manifest).schema.equals(SCHEMA)


def test_resolved_targets_share_what_is_left():
    one = Profession("x", "an x", (Destination("a b", "b", 0.4), Destination("a c", "c")))
    assert resolved_targets(one, ["a", "b", "c"]) == pytest.approx({"a": 0.3, "b": 0.4, "c": 0.3})


_cell = st.one_of(st.none(), st.floats(0, 1).map(lambda x: x + 0.0))
_word = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="\u00ad"), min_size=1, max_size=12
).filter(lambda word: word == word.strip() and word.isprintable())


@st.composite
def manifests(draw):
    names = draw(st.lists(_word, min_size=1, max_size=6, unique_by=str.lower))
    rows = []
    for at, name in enumerate(names):
        lam = draw(st.one_of(st.none(), st.floats(1e-12, 1e12)))
        share = draw(st.floats(0, 0.5))
        for label in draw(st.sampled_from([["female"], ["female", "male"], ["male"]])):
            prompts = {"source": f"s{at} {name}", "destination": f"{label} {name}"}
            one = {"profession": name, "label": label, **prompts}
            only = {"target": draw(st.one_of(st.none(), st.floats(0, 0.5))), "lam": lam}
            rows.append((one, only, share))
    made = []
    for one, only, share in rows:
        several = sum(row["profession"] == one["profession"] for row, _, _ in rows) > 1
        first = several and one["label"] == "female"
        target = None if several and not first else only["target"]
        made.append(ManifestRow(**one, lam=only["lam"], target=target, share=share if first else None))
    return Manifest(tuple(made))


@settings(max_examples=60, deadline=None)
@given(manifests())
def test_round_trips_through_both_formats(manifest):
    via_csv = read_manifest(manifest_bytes(manifest, ".csv"), labels=LABELS)
    via_parquet = read_manifest(manifest_bytes(via_csv, ".parquet"), labels=LABELS)
    assert via_csv == via_parquet == manifest
    assert via_csv.digest == via_parquet.digest == Manifest(manifest.rows[::-1]).digest
    assert manifest_bytes(via_parquet) == manifest_bytes(manifest)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300), st.text(max_size=300).map(lambda s: (HEADER + "\n" + s).encode("utf-8", "replace"))
    )
)
def test_any_bytes_end_in_a_manifest_error_or_a_manifest(content):
    with contextlib.suppress(ManifestError):
        assert read_manifest(content, labels=LABELS).rows


def test_digest_sees_every_cell():
    row = ManifestRow(profession="a", source="b", destination="c", label="d", target=0.5, share=1.0, lam=2.0)
    changed = [row.model_copy(update={name: "z" if isinstance(value, str) else 0.25}) for name, value in row]
    digests = {Manifest((one,)).digest for one in [row, *changed]}
    assert len(digests) == 1 + len(changed)


def test_unicode_professions(tmp_path):
    rows = ["médico,un médico,una médica,female,,,", "医者,医者の写真,女性の医者,female,,,", "Ärztin 👩‍⚕️,x,y,female,,,"]
    manifest = read_manifest(b"\xef\xbb\xbf" + text(*rows), labels=["female"])
    assert [profession.name for profession in manifest.professions] == ["médico", "医者", "Ärztin 👩‍⚕️"]
    for name in ("a.csv", "a.parquet"):
        write_manifest(manifest, tmp_path / name)
        assert read_manifest(tmp_path / name) == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.parquet"]


@pytest.mark.parametrize(
    ("row", "column", "says"),
    [
        (",a x,a b x,female,,,", "profession", "is empty"),
        ("x,,a b x,female,,,", "source", "is empty"),
        ("x,a x,   ,female,,,", "destination", "only white space"),
        ("x,a x,a b x ,female,,,", "destination", "white space at an end"),
        ('x,a x,"a\nb x",female,,,', "destination", "line break"),
        ("x,a x,a\x07b x,female,,,", "destination", "U+0007"),
        ("x,a x,a\u200bb x,female,,,", "destination", "U+200B"),
        ("x,a x,a b x,femal,,,", "label", "did you mean 'female'"),
        ("x,a x,a b x,robot,,,", "label", "female, male"),
        ("x,a x,a b x,female,,,0", "lam", "positive"),
        ("x,a x,a b x,female,,,-1", "lam", "positive"),
        ("x,a x,a b x,female,,,nan", "lam", "nan"),
        ("x,a x,a b x,female,,,inf", "lam", "inf"),
        ("x,a x,a b x,female,,,strong", "lam", "not a number"),
        ("x,a x,a b x,female,,,1_0", "lam", "not a number"),
        ("x,a x,a b x,female,1.5,,", "target", "0 to 1"),
        ("x,a x,a b x,female,50,,", "target", "0.5 for 50 percent"),
        ("x,a x,a b x,female,-0.1,,", "target", "0 to 1"),
        ("x,a x,a b x,female,nan,,", "target", "nan"),
        ("x,a x,a b x,female,,1.5,", "share", "0 to 1"),
        ("x,a x,a b x,female,,0.5,", "share", "one destination has 1"),
        ("x,A  ceo,a b x,female,,,", "source", "'CEO' too (row 1)"),
        ("x,a x,a b x,female,,", None, "6 cells"),
        ("CEO,a boss,a b x,female,0.5,,", "source", "in row 1"),
        ("CEO,a CEO,a female CEO,female,0.5,,", "destination", "repeats row 1"),
        ("CEO,a CEO,a CEO woman,female,0.4,,", "target", "counts once"),
        ("CEO,a CEO,a CEO woman,female,0.5,,3", "lam", "in row 1 empty"),
    ],
)
def test_each_fault_alone(row, column, says):
    (fault,) = faults(text(*GOOD, row))
    assert (fault.row, fault.column, fault.line) == (4, column, 5)
    assert says in fault.message


@pytest.mark.parametrize(
    ("cells", "column", "says"),
    [
        ((("female", "0.7,,"), ("male", "0.7,,")), "target", "1.4"),
        ((("female", "0.2,,"), ("male", "0.3,,")), "target", "make 1 together"),
        ((("female", ",0.7,"), ("male", ",0.7,")), "share", "1.4"),
        ((("female", ",0.2,"), ("male", ",0.3,")), "share", "all are given"),
    ],
)
def test_sums(cells, column, says):
    rows = [f"x,an x,a {label} x,{label},{rest}" for label, rest in cells]
    (fault,) = faults(text(*GOOD, *rows))
    assert (fault.row, fault.column) == (4, column)
    assert says in fault.message


def test_sums_that_are_fine():
    rows = ["x,an x,a female x,female,0.3333333,0.3333333,2", "x,an x,a male x,male,0.6666667,0.6666667,2"]
    assert read_manifest(text(*rows), labels=LABELS).professions[0].lam == 2
    assert read_manifest(text("x,an x,a y x,female,0.2,,", "x,an x,a z x,female,0.2,,"), labels=LABELS)


def test_all_at_once_with_rows_and_lines():
    rows = [GOOD[0], 'x,"an\nx",a female x,woman,2,,0', "", "nurse,a ceo,,male,x,,nan", GOOD[1]]
    found = faults(text(*rows))
    assert sorted(places(found)) == sorted(
        (row, column)
        for row, columns_of_row in (
            (2, ("source", "label", "target", "lam")),
            (3, ("source", "destination", "target", "lam")),
        )
        for column in columns_of_row
    )
    assert {fault.row: fault.line for fault in found} == {2: 3, 3: 6}
    shown = str(ManifestError("m.csv", found))
    assert shown.startswith("m.csv: 8 faults")
    assert "row 3 (line 6), column 'lam'" in shown


def test_columns_missing_unknown_repeated_and_rows_still_checked():
    found = faults(
        text("x,,a,female,,1", header="profession,source,destnation,label,share,lam,lam".replace(",lam,lam", ",Lam"))
    )
    assert (None, "destnation") in places(found)
    assert (None, "destination") in places(found)
    assert (None, "target") not in places(found)
    assert any("did you mean 'destination'" in fault.message for fault in found)
    assert any("did you mean 'lam'" in fault.message for fault in found)
    assert (1, "source") in places(found)
    assert any("2 times" in fault.message for fault in faults(text(header=HEADER + ",lam")))


def test_parquet_types_and_nulls():
    table = columns(
        lam=pa.array(["1", "2", "3"]), source=pa.array(["a CEO", None, "a nurse"]), extra=pa.array([1, 2, 3])
    )
    found = faults(parquet(table))
    assert places(found) == [(None, "extra"), (None, "lam"), (2, "source")]
    assert "write it as double" in found[1].message
    assert found[2].line is None


def test_parquet_variants_that_are_fine():
    table = columns(
        label=pa.array(["female", "male", "male"]).dictionary_encode(),
        source=pa.array(["a CEO", "a CEO", "a nurse"], pa.large_string()),
        target=pa.array([0.5, 0.5, None], pa.float32()),
        share=pa.nulls(3),
        lam=pa.array([None, None, 1], pa.int64()),
    )
    assert read_manifest(parquet(table), labels=LABELS).rows[2].lam == 1.0


def test_decimal_numbers_are_numbers():
    found = read_manifest(
        parquet(
            columns(
                target=pa.array([Decimal("0.50"), Decimal("0.5"), None], pa.decimal128(5, 2)),
                lam=pa.array([2, 2, None], pa.uint8()).dictionary_encode(),
            )
        ),
        labels=LABELS,
    )
    assert [(row.target, row.lam) for row in found.rows] == [(0.5, 2.0), (0.5, 2.0), (None, None)]


def test_columns_that_may_be_empty_may_be_left_out():
    short = text(*(row.rpartition(",")[0].rpartition(",")[0] for row in GOOD), header=HEADER.removesuffix(",share,lam"))
    table = columns()
    del table["share"], table["lam"]
    assert read_manifest(short, labels=LABELS) == read_manifest(parquet(table), labels=LABELS) == sound()
    (fault,) = faults(text(*GOOD, header=HEADER.replace("target", "Target")))
    assert "did you mean 'target'?" in fault.message


def test_a_data_frames_index_is_no_column(tmp_path):
    frame = pd.read_csv(io.BytesIO(text(*GOOD)))
    shuffled = frame.loc[[2, 0, 1]]
    shuffled.to_parquet(tmp_path / "m.parquet")
    assert "__index_level_0__" in pq.read_schema(tmp_path / "m.parquet").names
    assert read_manifest(tmp_path / "m.parquet", labels=LABELS).digest == sound().digest
    shuffled.to_csv(tmp_path / "m.csv")
    assert read_manifest(tmp_path / "m.csv", labels=LABELS).digest == sound().digest
    # Not by its name alone.
    table = columns() | {"__index_level_0__": pa.array([1, 2, 3])}
    assert places(faults(parquet(table))) == [(None, "__index_level_0__")]
    shuffled.set_index("lam").to_parquet(tmp_path / "named.parquet")
    assert read_manifest(tmp_path / "named.parquet", labels=LABELS).digest == sound().digest


@pytest.mark.parametrize("mark", [";", "\t"])
def test_cells_may_be_separated_as_the_header_is(mark):
    content = text(*GOOD).replace(b",", mark.encode())
    assert read_manifest(content, labels=LABELS) == sound()
    assert read_manifest(b"\xef\xbb\xbf" + mark.encode() * 6 + b"\r\n" + content, labels=LABELS) == sound()
    (fault,) = faults(content + mark.join(["x"] * 9).encode())
    assert f"quote cells that hold a {'semicolon' if mark == ';' else 'tab'}" in fault.message


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("0,5", "'0,5' has a decimal comma; write it with a point, 0.5"),
        (",25", "',25' has a decimal comma; write it with a point, .25"),
        ("50%", "'50%' is a percentage; write the number itself, 0.5"),
        ("12,5 %", "'12,5 %' is a percentage; write the number itself, 0.125"),
        ("1.000,5", "'1.000,5' is not a number"),
    ],
)
def test_numbers_as_people_write_them_are_told_how_to_be_written(cell, says):
    (fault,) = faults(text(f"x;an x;a female x;female;{cell};;", header=HEADER.replace(",", ";")))
    assert (fault.row, fault.column) == (1, "target")
    assert says in fault.message


def test_parquet_text_that_is_not_utf8():
    broken = pa.array([b"a CEO", b"\xff\xfe", b"a nurse"]).view(pa.string())
    for cells in (broken, broken.dictionary_encode()):
        (fault,) = faults(parquet(columns(source=cells)))
        assert (fault.row, fault.column) == (2, "source")
    assert "UTF-8" in faults(parquet(columns(extra=pa.array(["x"] * 3))).replace(b"extra", b"e\xff\xfera"))[0].message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\xff\xd8\xff\xe0 a picture", "UTF-8"),
        (b"\x7fELF\x02\x01\x01\x00", "neither Parquet nor CSV"),
        (b"PAR1", "cut short"),
        (b"PAR1" + b"\0" * 50, "cut short"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"hello\nworld\n", "no header"),
        (HEADER.encode(), "no rows"),
        (b"\n\n", "no rows"),
        (text('a,"b'), "quotes"),
    ],
)
def test_files_that_are_no_manifest(content, says):
    assert any(says in fault.message for fault in faults(content)), [str(f) for f in faults(content)]


def test_truncated_parquet_and_wrong_suffix(tmp_path):
    whole = manifest_bytes(sound())
    for size in (5, len(whole) // 2, len(whole) - 1):
        assert faults(whole[:size])
    (tmp_path / "m.parquet").write_bytes(text(*GOOD))
    assert "is not Parquet" in faults(tmp_path / "m.parquet")[0].message
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path / "none.csv")


def test_checker_faults_are_merged():
    seen = []

    def checker(prompts):
        seen.extend(prompts)
        yield Fault(3, "source", "is longer than the encoder reads")

    found = faults(text(*GOOD, "x,an x,,female,,,"), checker=checker)
    assert [(row, source) for row, source, _ in seen] == [(1, "a CEO"), (2, "a CEO"), (3, "a nurse")]
    assert [(fault.row, fault.line) for fault in found] == [(3, 4), (4, 5)]
    with pytest.raises(ManifestError) as caught:
        check_with(sound(), checker)
    assert caught.value.faults[0].line == 4
    check_with(sound(), lambda prompts: [])


def test_error_pickles():
    error = ManifestError("m", [Fault(1, "lam", "is 0", 2)])
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert str(again) == str(error)
    assert again.faults == error.faults
    assert replace(again.faults[0], line=None).place == "row 1, column 'lam'"
    assert pickle.loads(pickle.dumps(sound())) == sound()  # noqa: S301


def test_ten_thousand_rows_in_seconds():
    rows = [f"p{i},a p{i},a {label} p{i},{label},0.5,,1" for i in range(10_000) for label in LABELS]
    manifest = read_manifest(text(*rows), labels=LABELS)
    content = manifest_bytes(manifest)
    start = time.perf_counter()
    assert len(read_manifest(content, labels=LABELS).professions) == 10_000
    assert time.perf_counter() - start < 4
    broken = [row.replace(",1", ",0") for row in rows]
    assert len(faults(text(*broken))) == 20_000
