"""Building manifests, the shipped one, and the command line."""

import json

import pytest
from typer.testing import CliRunner

from manifests import manifest_table, read_manifest
from manifests.build import (
    GENDER_AND_AGE_LABELS,
    article,
    build_manifest,
    build_shipped,
    build_shipped_by_gender_and_age,
    shipped_manifest_by_gender_and_age_path,
    shipped_manifest_path,
)
from manifests.commands import app

run = CliRunner().invoke


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("CEO", "a"), ("attendant", "an"), ("analyst", "an"), ("hourly worker", "an"), ("university dean", "a"),
        ("HR manager", "an"), ("usher", "an"), ("UX designer", "a"), ("éleveur", "an"), ("one-man band", "a"),
        ("female attendant", "a"), ("elderly CEO", "an"),
    ],
)  # fmt: skip
def test_article(words, expected):
    assert article(words) == expected


def test_build_manifest():
    manifest = build_manifest(["CEO", "attendant"], targets={"female": 0.4}, articles={"CEO": "the"})
    assert [(row.source, row.destination, row.target) for row in manifest.rows] == [
        ("the CEO", "a female CEO", 0.4),
        ("the CEO", "a male CEO", None),
        ("an attendant", "a female attendant", 0.4),
        ("an attendant", "a male attendant", None),
    ]


def test_shipped_manifest_is_what_the_command_builds(tmp_path):
    built = build_shipped(tmp_path / "m.parquet")
    shipped = read_manifest(shipped_manifest_path(), labels=["female", "male"])
    assert shipped == built == read_manifest(tmp_path / "m.parquet")
    assert manifest_table(shipped).equals(manifest_table(built))
    assert len(shipped.professions) == 35
    assert len(shipped.rows) == 70
    assert all(p.labels == ("female", "male") and p.lam is None for p in shipped.professions)
    assert all(row.target == 0.5 and row.share is None for row in shipped.rows)
    names = [profession.name for profession in shipped.professions]
    assert build_manifest(names, targets={"female": 0.5, "male": 0.5}) == shipped


def test_shipped_manifest_by_gender_and_age_is_what_the_command_builds(tmp_path):
    built = build_shipped_by_gender_and_age(tmp_path / "m.parquet")
    shipped = read_manifest(shipped_manifest_by_gender_and_age_path(), labels=GENDER_AND_AGE_LABELS)
    assert shipped == built == read_manifest(tmp_path / "m.parquet")
    assert shipped_manifest_by_gender_and_age_path().read_bytes() == (tmp_path / "m.parquet").read_bytes()
    names = [profession.name for profession in read_manifest(shipped_manifest_path()).professions]
    targets = dict.fromkeys(GENDER_AND_AGE_LABELS, 0.25)
    assert build_manifest(names, labels=GENDER_AND_AGE_LABELS, targets=targets) == shipped
    assert [row.destination for row in shipped.rows if row.profession == "attendant"] == [
        "a young female attendant", "an old female attendant", "a young male attendant", "an old male attendant",
    ]  # fmt: skip


def test_check_command(tmp_path):
    result = run(app, ["check", str(shipped_manifest_path()), "--labels", "female,male"])
    assert (result.exit_code, "35 professions" in result.output) == (0, True)
    bad = tmp_path / "[red]bad.csv"
    bad.write_text("profession,source,destination,label,target,share,lam\nx,a x,,female,2,,0\n")
    result = run(app, ["check", str(bad)])
    assert result.exit_code == 2
    assert all(word in result.output for word in ("destination", "target", "lam", "[red]"))
    result = run(app, ["check", str(bad), "--json"])
    found = json.loads(result.output)
    assert (result.exit_code, found["ok"]) == (2, False)
    assert [(fault["row"], fault["line"], fault["column"]) for fault in found["faults"]] == [
        (1, 2, "destination"), (1, 2, "target"), (1, 2, "lam"),
    ]  # fmt: skip
    assert json.loads(run(app, ["check", str(shipped_manifest_path()), "--json"]).output)["professions"] == 35
    result = run(app, ["check", str(tmp_path / "none.csv")])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert result.output.startswith(f"{tmp_path / 'none.csv'} can't be opened: No such file or directory")
    assert run(app, ["check", str(shipped_manifest_path()), "--labels", "old,young"]).exit_code == 2


def test_faults_can_be_read_in_80_columns(tmp_path):
    bad = tmp_path / "m.csv"
    bad.write_text("profession_name_as_the_department_has_it_in_its_own_files,source,destination,label\n")
    lines = run(app, ["check", str(bad)], env={"COLUMNS": "80"}).output.splitlines()
    assert max(map(len, lines[1:])) <= 80
    told = " ".join(line.rsplit("│", 2)[1].strip() for line in lines if line.startswith("│"))
    assert "is not a column of a manifest; remove it; the columns are profession, source, destination" in told
    assert len(lines) < 12


def test_build_command(tmp_path):
    names, table, again = tmp_path / "n.txt", tmp_path / "n.parquet", tmp_path / "n.csv"
    names.write_text("CEO\n\nattendant\n")
    assert run(app, ["build", str(names), str(table), "--labels", "female,male"]).exit_code == 0
    assert run(app, ["build", str(table), str(again), "--json"]).exit_code == 0
    assert read_manifest(again) == read_manifest(table)
    names.write_text("CEO\nCEO\n")
    result = run(app, ["build", str(names), str(tmp_path / "x.parquet"), "--json"])
    assert result.exit_code == 2
    assert json.loads(result.output)["ok"] is False
    assert not (tmp_path / "x.parquet").exists()
