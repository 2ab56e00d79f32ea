"""`docs/configuration.md` from the fields of `RunConfig`: `make docs`, or `python -m jobs.config.reference`."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jobs.config import RunConfig

__all__ = ["reference"]

_HEAD = """# Configuration

A run is one YAML file. Four keys are needed, and all others have defaults. `make docs` writes this page from the code.

A key may also be an environment variable or a flag. Flags win over the environment, which wins over the file.

    sampler: {steps: 20}                   # in the file
    EVENHAND_SAMPLER__STEPS=20             # in the environment: upper case, two underscores for a dot
    evenhand debias run.yaml --set sampler.steps=20

Unknown keys are rejected. All faults of a configuration are reported at once, before any work starts.

Words of this page. The [README](../README.md) explains the others, such as *profession*, *wording* and *control*.

- **Variant:** what the model is drawn under. Most runs draw two variants: *base*, without an edit, and *edited*.
- **Cell:** one prompt and its images, in one variant.
- **Shard:** a stored file with the embeddings of up to `shard_images` images of one cell.
- **Seed:** the number from which an image's noise is drawn.
- **Lambda**, `lam` in keys: the strength of an edit. Smaller is stronger. An *open* lambda is one that no row of the
  manifest gives.
- **Scale of an edit:** the unit of most lambdas. It is the median over edits of the spectral norm of
  sum (c* - c) c^T. Here c is a token of the source prompt, and c* the same token of the destination prompt.
- **Saturated:** nearly all images of a component show the component's own label.
- **Edit set:** the edits that `evenhand evaluate` measures, with the prompts that each should change or leave alone.
- **Base:** in a gate, the model without the edit, or what an audit is compared with.
"""
_SHOWN = 3
"""Of a longer list of defaults so many are shown."""


def reference() -> str:
    """All keys with type, default and meaning, as Markdown: first those of the run itself, then a table a section."""
    fields = RunConfig.model_fields
    sections = {key: section for key, field in fields.items() if (section := _section(field))}
    parts = [_HEAD, "## The run\n", _table({key: field for key, field in fields.items() if key not in sections})]
    for key, section in sections.items():
        parts += [f"## {key}\n", f"{_prose(section.__doc__ or '')}\n", _table(section.model_fields)]
    return "\n".join(parts)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _table(fields: Mapping[str, FieldInfo]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in fields.items():
        cells = (f"`{key}`", _type(field), _default(field), field.description or "")
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _type(field: FieldInfo) -> str:
    bounds = [_bound(entry) for entry in field.metadata]
    return ", ".join([_name(field.annotation), *(bound for bound in bounds if bound)])


def _name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin in (Union, types.UnionType):
        return " or ".join(_name(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin is tuple:
        return f"list of {_name(arguments[0])}"
    if origin is dict:
        return f"mapping of {_name(arguments[1])}"
    if hasattr(annotation, "__metadata__"):
        bounds = [_bound(entry) for meta in annotation.__metadata__ for entry in getattr(meta, "metadata", ())]
        return ", ".join([_name(annotation.__origin__), *(bound for bound in bounds if bound)])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bound(entry: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return " ".join(f"{sign} {getattr(entry, name):,}" for name, sign in signs.items() if hasattr(entry, name))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, tuple) and len(value) > _SHOWN:
        shown = ", ".join(f"`{item}`" for item in value[:_SHOWN])
        return f"{shown} and {len(value) - _SHOWN} more"
    if isinstance(value, dict | tuple):
        plain = {k: list(v) for k, v in value.items()} if isinstance(value, dict) else list(value)
        return f"`{yaml.safe_dump(plain, default_flow_style=True, width=10_000, sort_keys=False).strip()}`"
    text = yaml.safe_dump(value, width=10_000).removesuffix("...\n")
    return f"`{text.strip()}`"


def _prose(docstring: str) -> str:
    return re.sub(r"\s+", " ", docstring).strip()


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    typer.echo(reference(), nl=False)
