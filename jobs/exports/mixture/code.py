"""The files that users run, as they lie in a mixture's folder: the same bytes for every mixture of a family.

Of SDXL, SD3 and FLUX `pipeline.py` is put together from two modules here, as a user's folder has one file: what all
families share, without SD 1.x's pipeline, and the family's own.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.resources import files as resources
from typing import Any

from jobs.exports.mixture.parts import CODE, PIPELINE
from jobs.models.names import Family, family_of

__all__ = ["code_bytes"]

_SHARED = "pipeline"
_OWN: dict[Family, str] = {"xl": "pipeline_xl", "sd3": "pipeline_sd3", "flux": "pipeline_flux"}


def code_bytes(name: str, config: Mapping[str, Any] | None = None) -> bytes:
    """A file that users run.

    Args:
        name: what it is called in their folder.
        config: of the base model's UNet or transformer; None: SD 1.x or 2.x.
    """
    if name == PIPELINE and config is not None and (own := _OWN.get(family_of(config))) is not None:
        return _joined(own)
    return resources("jobs.exports.mixture").joinpath(CODE[name]).read_bytes()


@cache
def _joined(module: str) -> bytes:
    shared, own = (resources("jobs.exports.mixture").joinpath(f"{name}.py").read_text() for name in (_SHARED, module))
    # Of the shared module all but its docstring, its `__all__` and the other families' pipeline.
    kept = [part for part in _parts(shared) if not part.startswith(('"""', "__all__", "class MixturePipeline("))]
    head, *rest = [part for part in _parts(own) if not part.startswith(("from jobs.", "__all__"))]
    imports = [part for part in rest if not part.startswith("class ")]
    pipeline = [part for part in rest if part.startswith("class ")]
    all_imports = sorted({part for part in (*kept, *imports) if part.startswith(("import ", "from "))})
    others = [part for part in kept if not part.startswith(("import ", "from "))]
    body = "\n\n\n".join((*others, *pipeline))
    return f"{head}\n\n{chr(10).join(all_imports)}\n\n{body}\n".encode()


def _parts(source: str) -> list[str]:
    """The text of each statement of a module, its decorators and what is written above it left out."""
    lines = source.splitlines()
    parts = []
    for node in ast.parse(source).body:
        start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        parts.append("\n".join(lines[start - 1 : node.end_lineno]))
    return parts
