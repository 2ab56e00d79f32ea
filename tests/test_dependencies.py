"""What can be said of dependencies without a network: every package that an installation brings has its exact version.

Known vulnerabilities are not looked up here: `infra.advisories` reads a file of them, `pip-audit` asks for it.
"""

import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
EXACT = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+")


def pinned() -> dict[str, str]:
    lines = [line.strip() for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    assert not [line for line in lines if not EXACT.fullmatch(line)], "not an exact version"
    pins = dict(line.split("==") for line in lines)
    return {canonicalize_name(name): number for name, number in pins.items()}


def brought(extras: tuple[str, ...]) -> dict[str, set[str]]:
    """Packages that are installed because Evenhand asks for them, directly or not, each with who asks."""
    found: dict[str, set[str]] = {}
    left = [("evenhand", extra) for extra in ("", *extras)]
    seen = set(left)
    while left:
        asking, extra = left.pop()
        try:
            texts = requires(asking) or []
        except PackageNotFoundError:
            continue  # of another platform, or one that is downloaded and not installed
        for text in texts:
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({"extra": extra}):
                continue
            name = canonicalize_name(need.name)
            found.setdefault(name, set()).add(asking)
            new = [(name, each) for each in ("", *need.extras) if (name, each) not in seen]
            seen.update(new)
            left.extend(new)
    return found


def test_every_package_that_comes_along_is_pinned() -> None:
    pins = pinned()
    needed = brought(("local", "mlflow", "dev"))
    assert len(needed) > 100
    ours = {"evenhand"}
    missing = {name: sorted(who) for name, who in needed.items() if name not in pins and name not in ours}
    assert missing == {}


def test_what_is_installed_is_what_is_pinned() -> None:
    other = {}
    for name, number in pinned().items():
        try:
            installed = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
        if installed != number.partition("+")[0]:
            other[name] = installed
    assert other == {}
