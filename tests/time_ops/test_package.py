from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import time_ops


def test_importing_it_loads_no_cluster_no_storage_and_no_pipelines() -> None:
    code = "import sys, time_ops; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    root = Path(time_ops.__file__).parents[1]
    loaded = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    foreign = {"ray", "boto3", "pyarrow", "diffusers", "transformers", "jobs", "infra", "manifests"}
    assert not foreign & set(loaded.split())


def test_every_module_says_what_it_holds_and_what_is_public() -> None:
    for found in pkgutil.walk_packages(time_ops.__path__, "time_ops."):
        module = importlib.import_module(found.name)
        assert module.__doc__, found.name
        assert found.ispkg or all(hasattr(module, name) for name in module.__all__), found.name
    assert all(hasattr(time_ops, name) for name in time_ops.__all__)
