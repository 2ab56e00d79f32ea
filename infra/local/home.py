"""The cluster's home folder: state, data, logs, and secrets readable by their owner only."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.local.errors import LocalError

__all__ = ["REGION", "Credentials", "Home", "Server", "State", "write_private"]

REGION = "us-east-1"
_LOCK_TIMEOUT_S = 300
# Ray's sockets are up to 66 characters below its folder, and a unix socket's path ends at 107.
_MAX_TEMP_LENGTH = 40


class Server(BaseModel):
    """A server that was started: enough to find it again, and never to mistake another process for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    """Of the process that leads the server's session."""
    started: float
    """When that process started, seconds since the epoch: a recycled pid differs in it."""


class State(BaseModel):
    """What `state.json` holds; no secret."""

    model_config = ConfigDict(extra="forbid")

    bucket: str = "evenhand"
    seaweed: Server | None = None
    ray: Server | None = None
    ports: dict[str, int] = {}
    """By purpose; kept after `down`, and taken again when still free."""
    versions: dict[str, str] = {}
    """Of the servers last started."""


@dataclass(frozen=True)
class Credentials:
    """The home's own random S3 keys."""

    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        return "Credentials(...)"


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)


@dataclass(frozen=True)
class Home:
    """Where everything of one embedded cluster lives."""

    root: Path

    @classmethod
    def at(cls, home: str | os.PathLike[str] | None) -> Home:
        """Return the home at `home`, or at EVENHAND_HOME, or at `./.evenhand`; nothing is created."""
        return cls(Path(home or os.environ.get("EVENHAND_HOME") or ".evenhand").expanduser().resolve())

    def create(self) -> None:
        """Make the folders and secrets that are missing.

        Raises:
            LocalError: the folder can't be made, or belongs to someone else.
        """
        try:
            for folder in (self.root, self.store, self.logs, self.temp):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                owner = folder.lstat()
                if owner.st_uid != os.getuid() or not stat.S_ISDIR(owner.st_mode):
                    raise LocalError(f"{folder} belongs to another user. Choose another EVENHAND_HOME.")
                folder.chmod(0o700)
            ignore = self.root / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n", encoding="utf-8")
            if not self.credentials_file.exists():
                access = "EH" + "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(18))
                lines = [
                    "[default]",
                    f"aws_access_key_id = {access}",
                    f"aws_secret_access_key = {secrets.token_hex(24)}",
                ]
                write_private(self.credentials_file, "\n".join(lines) + "\n")
            if not self.ray_token.exists():
                write_private(self.ray_token, secrets.token_hex(32))
        except OSError as error:
            what = f"{error.strerror} ({error.filename})"
            raise LocalError(f"prepare {self.root}: {what}. Choose another EVENHAND_HOME.") from error

    @property
    def marker(self) -> str:
        """What names this home in its servers' environment; a digest of the path, no secret."""
        return hashlib.sha256(f"{os.getuid()}:{self.root}".encode()).hexdigest()[:12]

    @property
    def store(self) -> Path:
        """The S3 server's data."""
        return self.root / "store"

    @property
    def logs(self) -> Path:
        """The servers' output."""
        return self.root / "logs"

    @property
    def temp(self) -> Path:
        """A folder of short path for sockets and Ray's session; removed at `down`."""
        base = Path(tempfile.gettempdir())
        name = f"evenhand-{self.marker}"
        return (base if len(str(base / name)) <= _MAX_TEMP_LENGTH else Path("/tmp")) / name  # noqa: S108 - made 0700

    @property
    def credentials_file(self) -> Path:
        """The AWS shared credentials file."""
        return self.root / "credentials"

    @property
    def aws_config(self) -> Path:
        """The AWS config file: endpoint, region, path style, checksum mode."""
        return self.root / "aws-config"

    @property
    def ray_token(self) -> Path:
        """The token that Ray's servers ask for."""
        return self.root / "ray-token"

    @property
    def state_file(self) -> Path:
        """Pids, ports and versions."""
        return self.root / "state.json"

    def credentials(self) -> Credentials:
        """Read the S3 keys.

        Raises:
            LocalError: the file is missing or has no keys.
        """
        try:
            lines = self.credentials_file.read_text("utf-8").splitlines()
            pairs = (line.split("=", 1) for line in lines if "=" in line)
            values = {name.strip(): value.strip() for name, value in pairs}
            return Credentials(values["aws_access_key_id"], values["aws_secret_access_key"])
        except (OSError, KeyError) as error:
            raise LocalError(f"{self.credentials_file} can't be read. Delete it, then: evenhand local up") from error

    def write_aws_config(self, endpoint: str) -> None:
        """Write the AWS config file for an S3 endpoint."""
        lines = [
            "[default]",
            f"region = {REGION}",
            f"endpoint_url = {endpoint}",
            "request_checksum_calculation = when_required",
            "response_checksum_validation = when_required",
            "s3 =",
            "    addressing_style = path",
        ]
        write_private(self.aws_config, "\n".join(lines) + "\n")

    def read_state(self) -> State:
        """Read the state; a missing or unreadable one is empty, since servers are also known by their environment."""
        try:
            return State.model_validate_json(self.state_file.read_text("utf-8"))
        except (FileNotFoundError, ValidationError):
            return State()

    def write_state(self, state: State) -> None:
        """Write the state, whole."""
        write_private(self.state_file, json.dumps(state.model_dump(), indent=2) + "\n")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the home for one command at a time.

        Raises:
            LocalError: another command held it for five minutes.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with filelock.FileLock(self.root / "lock", timeout=_LOCK_TIMEOUT_S, mode=0o600):
                yield
        except filelock.Timeout as error:
            raise LocalError(f"another command has held {self.root} for {_LOCK_TIMEOUT_S} s. Try later.") from error

    def remove_temp(self) -> None:
        """Delete the folder of sockets and sessions."""
        shutil.rmtree(self.temp, ignore_errors=True)
