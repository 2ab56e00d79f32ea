"""A model kept in the store is the same model, whole, and free of what is never opened."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.demo import CLASSIFIER_PATH, PIPELINE_PATH
from infra.storage import S3Store
from jobs.cli import main
from jobs.errors import ConfigError
from jobs.models.checksums import CHECKSUMS, parse_checksums
from jobs.models.digests import content_digest
from jobs.models.offline import publish_model
from jobs.models.staging import fetch_model
from tests.conftest import S3Server
from time_ops import ModelError

ROOT = Path(__file__).parents[3]


def test_a_kept_model_is_the_same_model(s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = s3.store()
    own = Path(shutil.copytree(PIPELINE_PATH, tmp_path / "own"))
    (own / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickled beside safetensors")
    (own / ".cache").mkdir()
    (own / ".cache" / "note.json").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        main(["stage", str(own), store.url("sd")])
    assert ended.value.code == 0
    assert content_digest(PIPELINE_PATH) in capsys.readouterr().out
    back = fetch_model(store.url("sd"), s3.settings, tmp_path / "cache", pipeline=True)
    assert content_digest(back) == content_digest(PIPELINE_PATH)
    names = {name.removeprefix("sd/") for name in store.list("sd")}
    assert names == {*parse_checksums(store.get(f"sd/{CHECKSUMS}").decode()), CHECKSUMS}
    assert not [name for name in names if name.endswith(".bin") or name.startswith(".")]
    # What is there is not sent again.
    assert isinstance(store, S3Store)
    tags = {name: store.stat(name).tag for name in store.list()}
    written = store._client.get().head_object(Bucket=s3.bucket, Key=_key(store, "sd/model_index.json"))["LastModified"]
    assert publish_model(str(own), store.url("sd"), pipeline=True).files == len(names) - 1
    assert {name: store.stat(name).tag for name in store.list()} == tags
    again = store._client.get().head_object(Bucket=s3.bucket, Key=_key(store, "sd/model_index.json"))["LastModified"]
    assert again == written


def _key(store: S3Store, name: str) -> str:
    return store.url(name).removeprefix("s3://").partition("/")[2]


def test_workers_of_a_node_fetch_a_model_once(s3: S3Server, tmp_path: Path) -> None:
    """Processes that begin at once, each of which says how many objects it has asked the store for."""
    url = s3.store().url("clip")
    publish_model(str(CLASSIFIER_PATH), url, pipeline=False)
    code = (
        "from pathlib import Path; from infra.storage import StorageSettings\n"
        "from jobs.models.staging import fetch_model\n"
        "from infra.storage.s3_client import Client\n"
        "gets, made = [], Client.get\n"
        "def counted(self):\n"
        "    client = made(self)\n"
        "    client.meta.events.register('before-call.s3.GetObject', lambda **_: gets.append(1), unique_id='count')\n"
        "    return client\n"
        "Client.get = counted\n"
        f"cache = Path({str(tmp_path / 'cache')!r})\n"
        f"folder = fetch_model({url!r}, StorageSettings.from_environment(), cache, pipeline=False)\n"
        "print(len(gets), folder)\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [process.communicate(timeout=60)[0].split() for process in started]
    assert sorted(int(gets) > 0 for gets, _ in said) == [False, False, True], said
    (folder,) = {folder for _, folder in said}
    assert content_digest(Path(folder)) == content_digest(CLASSIFIER_PATH)


def test_a_classifier_goes_to_a_folder_as_well(tmp_path: Path) -> None:
    kept = publish_model(str(CLASSIFIER_PATH), str(tmp_path / "models" / "clip"), pipeline=False)
    assert kept.digest == content_digest(tmp_path / "models" / "clip") == content_digest(CLASSIFIER_PATH)


def test_nothing_else_is_overwritten(s3: S3Server, tmp_path: Path) -> None:
    store = s3.store()
    store.put("runs/a/report.json", b"{}")
    with pytest.raises(ConfigError, match="holds 1 objects and is no model"):
        publish_model(str(PIPELINE_PATH), store.url("runs"), pipeline=True)
    assert list(store.list()) == ["runs/a/report.json"]
    with pytest.raises(ConfigError, match="prefix of the model's own"):
        publish_model(str(PIPELINE_PATH), f"s3://{s3.bucket}", pipeline=True)


def test_a_part_with_pickled_weights_alone_is_refused(s3: S3Server, tmp_path: Path) -> None:
    store = s3.store()
    own = Path(shutil.copytree(PIPELINE_PATH, tmp_path / "own"))
    weights = next((own / "vae").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="vae holds pickled weights alone"):
        publish_model(str(own), store.url("sd"), pipeline=True)
    assert list(store.list()) == []


def test_offline_a_model_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    """Not once the store's patience is over: nothing that waiting brings."""
    code = (
        "from pathlib import Path; from infra.storage import StorageSettings; "
        "from jobs.models.staging import fetch_model; "
        f"fetch_model('org/none', StorageSettings(patience_s=100), Path({str(tmp_path)!r}), pipeline=False)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert time.monotonic() - begun < 60
    assert "ModelError: org/none" in done.stderr
    assert "HF_HUB_OFFLINE" in done.stderr
