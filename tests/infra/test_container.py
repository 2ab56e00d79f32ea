"""infra/container/pin.sh against a real registry, on loopback: what a tag names is written down by digest."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest

from infra.local.ports import choose_ports

CONTAINER = Path(__file__).parents[2] / "infra/container"
REGISTRY = Path(sys.prefix) / "registry/usr/bin/docker-registry"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"


def send(url: str, data: bytes, kind: str, method: str = "PUT") -> dict[str, str]:
    request = urllib.request.Request(url, data, {"Content-Type": kind}, method=method)  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return dict(answer.headers)


def push(registry: str, tag: str, said: str) -> str:
    """An index over one image without layers, whose configuration says something; returns the index's digest."""
    blob = json.dumps({"architecture": "amd64", "os": "linux", "author": said}).encode()
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    place = send(f"{registry}/blobs/uploads/", b"", "text/plain", "POST")["Location"]
    send(f"{place}&digest={digest}", blob, "application/octet-stream")
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "size": len(blob), "digest": digest}
    image = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []}).encode()
    digest = send(f"{registry}/manifests/{tag}-amd64", image, MANIFEST)["Docker-Content-Digest"]
    platform = {"architecture": "amd64", "os": "linux"}
    each = {"mediaType": MANIFEST, "size": len(image), "digest": digest, "platform": platform}
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [each]}).encode()
    return send(f"{registry}/manifests/{tag}", index, INDEX)["Docker-Content-Digest"]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    assert REGISTRY.is_file(), "`make test` unpacks it"
    host = f"127.0.0.1:{choose_ports('seaweed', {}, os.getpid())['s3']}"
    settings = {"version": 0.1, "storage": {"filesystem": {"rootdirectory": str(tmp_path)}}, "http": {"addr": host}}
    (tmp_path / "config.yml").write_text(json.dumps(settings))
    (tmp_path / ".config/containers").mkdir(parents=True)
    registries = tmp_path / ".config/containers/registries.conf"
    registries.write_text(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    server = subprocess.Popen(
        [REGISTRY, "serve", tmp_path / "config.yml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://{host}/v2/", timeout=5)
                break
            except URLError:
                time.sleep(0.1)
        yield host
    finally:
        server.kill()
        server.wait()


def test_the_base_is_pinned_to_what_its_tag_names_now(host: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CONTAINER, tmp_path / "container"))
    dockerfile = folder / "Dockerfile"
    before = dockerfile.read_text(encoding="utf-8")

    def pin(*image: str) -> tuple[int, str, str]:
        done = subprocess.run([folder / "pin.sh", *image], capture_output=True, text=True, check=False)
        base = re.findall(r"^ARG BASE=(.*)$", dockerfile.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(base) == 1
        return done.returncode, base[0], done.stdout + done.stderr

    tag = f"{host}/python:3.11-slim"
    first = push(f"http://{host}/v2/python", "3.11-slim", "first")
    assert pin(tag)[:2] == (0, f"{tag}@{first}")
    # Without an argument it is the same tag's again, which names another image by now.
    second = push(f"http://{host}/v2/python", "3.11-slim", "second")
    code, base, said = pin()
    assert (code, base) == (0, f"{tag}@{second}")
    assert f"{tag}@{first} -> {base}" in said
    assert second != first
    # What can't be found is told, and changes nothing.
    assert pin(f"{host}/python:none")[:2] == (1, base)
    after = dockerfile.read_text(encoding="utf-8")
    assert after.replace(base, "python:3.11-slim-bookworm") == before
