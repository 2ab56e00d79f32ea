"""`evenhand manifest`: its tables, its JSON and its exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import main
from jobs.cli.manifest import app
from manifests import read_manifest
from manifests.build import shipped_manifest_path

run = CliRunner().invoke


def test_check_command(tmp_path: Path) -> None:
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


def test_faults_can_be_read_in_80_columns(tmp_path: Path) -> None:
    bad = tmp_path / "m.csv"
    bad.write_text("profession_name_as_the_department_has_it_in_its_own_files,source,destination,label\n")
    lines = run(app, ["check", str(bad)], env={"COLUMNS": "80"}).output.splitlines()
    assert max(map(len, lines[1:])) <= 80
    told = " ".join(line.rsplit("│", 2)[1].strip() for line in lines if line.startswith("│"))
    assert "is not a column of a manifest; remove it; the columns are profession, source, destination" in told
    assert len(lines) < 12


def test_build_command(tmp_path: Path) -> None:
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


def test_a_build_that_fails_is_told_as_every_error_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("profession,source,destination,label\nx,a x,,female\n")
    for source, told in ((bad, "destination"), (tmp_path / "none.csv", "No such file")):
        with pytest.raises(SystemExit) as stop:
            main(["manifest", "build", str(source), str(tmp_path / "out.csv")])
        out, err = capsys.readouterr()
        assert (stop.value.code, out) == (2, "")
        assert err.startswith("error: ")
        assert told in err
