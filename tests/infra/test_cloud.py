"""infra/cloud and infra/container: what `ray up`, `ray job submit` and an image build read, checked without them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME
from ray.runtime_env import RuntimeEnv

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "infra/cloud/ray-cluster.yaml"
RUNTIME_ENV = ROOT / "infra/cloud/runtime-env.yaml"
DOCKERFILE = ROOT / "infra/container/Dockerfile"


def test_ray_takes_the_cluster() -> None:
    given = yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))
    config = prepare_config(given)
    validate_config(config)
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu-spot"))
    assert config["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}, "no work on the head"
    assert gpu["min_workers"] == 0
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        start = commands[-1]
        assert "RAY_AUTH_MODE=token" in start
        assert "0.0.0.0" not in start  # noqa: S104
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert not re.search(r"(?i)(access_key|secret|password)\S*:", CLUSTER.read_text(encoding="utf-8"))


def test_ray_refuses_a_misspelt_key() -> None:
    given = yaml.safe_load(CLUSTER.read_text(encoding="utf-8")) | {"max_worker": 3}
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(given))


def test_the_working_directory_leaves_weights_here(tmp_path: Path) -> None:
    settings = yaml.safe_load(RUNTIME_ENV.read_text(encoding="utf-8"))
    environment = RuntimeEnv(**settings)
    assert all(isinstance(value, str) for value in environment["env_vars"].values())
    folder = tmp_path / "mine"
    for name in (
        ".git/config",
        ".venv/bin/python",
        "out/report.html",
        "model/unet.safetensors",
        "run.yaml",
        "p.parquet",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    package = tmp_path / "package.zip"
    create_package(str(folder), package, include_gitignore=True, excludes=settings["excludes"])
    files = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    assert files == {"run.yaml", "p.parquet"}


def test_the_dockerfile_passes_its_linter() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    bad = subprocess.run(
        [hadolint, "-"], input="FROM python\nRUN cd /tmp\n", capture_output=True, text=True, check=False
    )
    assert bad.returncode == 1, "the linter finds what is wrong"
    assert {"DL3003", "DL3006"} <= set(re.findall(r"DL\d+", bad.stdout))


def test_the_image_runs_as_nobody_and_holds_no_secret() -> None:
    lines = re.sub(r"\\\n", " ", DOCKERFILE.read_text(encoding="utf-8")).splitlines()
    words = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    users = [rest for word, rest in words if word == "USER"]
    assert users == ["10001:10001"], "numbers, which Kubernetes can tell from root"
    assert not [rest for word, rest in words if word == "ADD"]
    targets = re.findall(r"^FROM (\S+) AS (\S+)$", "\n".join(lines), re.MULTILINE)
    bases = {name: base for base, name in targets}
    assert bases["cpu"] == bases["cuda"] == "runtime"
    assert [base for base in bases.values() if base not in bases] == ["${BASE}"]
    for rest in (rest for word, rest in words if word in ("ARG", "ENV")):
        assert not re.search(r"(?i)secret|password|token", rest)
    installs = [rest for word, rest in words if word == "RUN" and "pip install" in rest]
    assert len(installs) == 2
    assert all("--constraint /src/constraints.txt" in rest for rest in installs)
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert f"torch=={pinned[1]}" in installs[0]
    assert f"torch=={pinned[1]}" in CLUSTER.read_text(encoding="utf-8")


def test_the_head_may_start_and_end_its_own_nodes_and_no_others() -> None:
    cluster = yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))
    statements = json.loads((ROOT / "infra/cloud/autoscaler-policy.json").read_text(encoding="utf-8"))["Statement"]
    by_action = {action: each for each in statements for action in each["Action"]}
    assert set(by_action) == {
        *("ec2:DescribeInstances", "ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances", "iam:PassRole")
    }, "what Ray's AWS provider asks for with cache_stopped_nodes off"
    assert cluster["provider"]["cache_stopped_nodes"] is False
    own = {f"aws:ResourceTag/{TAG_RAY_CLUSTER_NAME}": cluster["cluster_name"]}
    assert by_action["ec2:TerminateInstances"]["Condition"] == {"StringEquals": own}
    worker = cluster["available_node_types"]["gpu-spot"]["node_config"]["IamInstanceProfile"]["Name"]
    assert by_action["iam:PassRole"]["Resource"].endswith(f":role/{worker.strip('<>')}")


def test_only_a_listing_is_held_to_a_prefix() -> None:
    """AWS knows `s3:prefix` of requests that list objects: under this condition all others are refused."""
    for file in sorted((ROOT / "infra/cloud/iam").glob("*.json")):
        for statement in json.loads(file.read_text(encoding="utf-8"))["Statement"]:
            if "s3:prefix" in statement.get("Condition", {}).get("StringLike", {}):
                assert statement["Action"] == ["s3:ListBucket"], file.name
