"""Pins are held against a file of advisories, without a network."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from infra.advisories import affected, read_advisories, read_pins


def advisory(name: str, *events: dict[str, str], versions: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    part = {
        "package": {"ecosystem": "PyPI", "name": name},
        "ranges": [{"type": "ECOSYSTEM", "events": list(events)}],
        "versions": list(versions),
    }
    return {"id": f"PYSEC-{name}", "summary": "a fault", "affected": [part], **more}


@pytest.mark.parametrize(
    ("version", "events", "hit"),
    [
        ("1.9", [{"introduced": "0"}, {"fixed": "1.10"}], True),  # as versions, not as text
        ("1.10", [{"introduced": "0"}, {"fixed": "1.10"}], False),
        ("1.10rc1", [{"introduced": "0"}, {"fixed": "1.10"}], True),
        ("2.0", [{"introduced": "2.1"}], False),
        ("3.0", [{"introduced": "2.1"}], True),
        ("2.5", [{"introduced": "2.1"}, {"last_affected": "2.5"}], True),
        ("2.6", [{"introduced": "2.1"}, {"last_affected": "2.5"}], False),
        # Mended in one line, brought back in the next, whatever order they are told in.
        ("2.2", [{"fixed": "1.5"}, {"introduced": "2.0"}, {"introduced": "0"}, {"fixed": "2.3"}], True),
        ("1.7", [{"fixed": "1.5"}, {"introduced": "2.0"}, {"introduced": "0"}, {"fixed": "2.3"}], False),
        ("1.0+cpu", [{"introduced": "0"}, {"fixed": "1.0"}], False),
    ],
)
def test_a_version_is_affected_between_its_events(version: str, events: list[dict[str, str]], hit: bool) -> None:
    assert bool(affected({"some-package": version}, [advisory("Some_Package", *events)])) is hit


def test_lists_of_versions_count_and_others_do_not() -> None:
    pins = {"one": "1.0", "two": "1.0"}
    everything = [{"introduced": "0"}]
    (hit,) = affected(pins, [advisory("one", versions=("0.9", "1.0")), advisory("three", *everything)])
    assert (hit.package, hit.advisory, hit.fixed) == ("one", "PYSEC-one", ())
    assert affected(pins, [advisory("two", *everything, withdrawn="2026-01-01T00:00:00Z")]) == []
    other = advisory("two", *everything)
    other["affected"][0]["package"]["ecosystem"] = "npm"
    assert affected(pins, [other]) == []


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra.advisories", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])


def test_the_command_reads_zip_folder_and_file_and_says_what_to_install(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("# ours\nray==2.0  # pinned\nTorch==2.13.0+cpu\n")
    assert read_pins(pins) == {"ray": "2.0", "torch": "2.13.0+cpu"}
    bad, fine = advisory("ray", {"introduced": "0"}, {"fixed": "2.1"}), advisory("torch", {"introduced": "3"})
    (tmp_path / "osv").mkdir()
    (tmp_path / "osv" / "a.json").write_text(json.dumps(bad))
    (tmp_path / "osv" / "b.json").write_text(json.dumps(fine))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("a.json", json.dumps(bad))
        archive.writestr("b.json", json.dumps(fine))
    for form in ("osv", "all.zip"):
        done = run(tmp_path / form, "--pins", pins)
        assert done.returncode == 1
        assert "ray 2.0: PYSEC-ray, mended in 2.1. a fault" in done.stdout
        assert "2 advisories, 2 pinned packages, 1 affected" in done.stdout
    (tmp_path / "list.json").write_text(json.dumps([fine]))
    assert run(tmp_path / "list.json", "--pins", pins).returncode == 0
    # The project's own pins can be read.
    assert run(tmp_path / "list.json").returncode == 0


@pytest.mark.parametrize("text", ["no json", '{"name": "no advisory"}', "[3]"])
def test_a_file_that_holds_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json|Expecting"):
        list(read_advisories(tmp_path / "a.json"))
    assert run(tmp_path / "a.json").returncode == 2
    assert run(tmp_path / "missing.json").returncode == 2
