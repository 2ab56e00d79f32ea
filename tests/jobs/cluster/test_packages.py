"""A worker that would import other packages than the driver's is refused before any work."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from jobs.cluster.packages import PACKAGES, differences, found_here, package_reader, refuse_others
from jobs.errors import ClusterError

ROOT = Path(__file__).parents[3]

DRIVER = """
import collections, os, sys
sys.path.insert(0, {root!r})
import ray
from jobs.config import WorkersConfig
from jobs.cluster.crew import Crew
from jobs.errors import ClusterError
from jobs.cluster.progress import Counts
os.chdir({folder!r})
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
for worker in (collections.Counter, Counts):  # one that starts there all the same, and one that is not there
    crew = Crew(worker, tuple, WorkersConfig(count=1), print)
    crew.spawn()
    try:
        crew.wait()
    except ClusterError as error:
        print("refused:", error)
    crew.close()
"""


def test_packages_are_known_by_their_files(tmp_path: Path) -> None:
    here = found_here()
    assert sorted(here) == sorted(PACKAGES)
    assert {Path(place).parent for _, place in here.values()} == {ROOT}
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from ray import cloudpickle
        read = cloudpickle.loads(bytes.fromhex(sys.argv[1]))
        print(read({PACKAGES!r}))
        print('jobs' in sys.modules)
    """
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    source = tmp_path / "jobs" / "images" / "shards.py"
    for change, differs in (("", False), ("\n# another version\n", True)):
        source.write_text(source.read_text() + change)
        done = subprocess.run(
            [sys.executable, "-c", code, cloudpickle.dumps(package_reader()).hex()],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        found, imported = done.stdout.splitlines()
        there = ast.literal_eval(found)
        assert imported == "False"
        assert there["jobs"][1] == str(tmp_path / "jobs")
        assert (there["jobs"][0] != here["jobs"][0]) is differs
        assert {name: there[name] for name in PACKAGES if name != "jobs"} == {
            n: here[n] for n in PACKAGES if n != "jobs"
        }


def test_what_differs_is_named_with_its_place() -> None:
    here = {"jobs": ("a", "/here/jobs"), "infra": ("b", "/here/infra"), "time_ops": ("c", "/here/time_ops")}
    assert differences(here, dict(here)) == []
    there = {"jobs": ("x", "/there/jobs"), "infra": ("", ""), "time_ops": ("c", "/elsewhere/time_ops")}
    assert differences(here, there) == ["`jobs` is another one, in /there/jobs", "`infra` is not installed"]
    with pytest.raises(ClusterError, match="`jobs` is another one, in /there/jobs"):
        refuse_others(here, there, "0123456789")


@pytest.mark.timeout(200)
def test_a_folder_that_shadows_ours_is_refused_before_any_work(tmp_path: Path) -> None:
    """A user's own `jobs` in the working directory, which Ray puts before everything else in a worker's path."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("")
    driver = tmp_path / "driver" / "drive.py"
    driver.parent.mkdir()
    driver.write_text(DRIVER.format(root=str(ROOT), folder=str(tmp_path)))
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    done = subprocess.run(
        [sys.executable, str(driver)], env=plain | quiet, cwd=tmp_path, capture_output=True, text=True, timeout=180
    )
    refusals = [line for line in done.stdout.splitlines() if line.startswith("refused:")]
    assert len(refusals) == 2, done.stdout + done.stderr
    assert all(f"`jobs` is another one, in {tmp_path / 'jobs'}" in line for line in refusals)
