"""What the parts of a mixture are called, in a folder of any form. Imports nothing heavy."""

from __future__ import annotations

from infra.storage.keys import safe_name
from jobs.exports.schema import Form

__all__ = ["CODE", "LOADER", "MIXTURE_FILE", "PIPELINE", "ROUTE", "component_name", "component_place"]

MIXTURE_FILE = "mixture.safetensors"
PIPELINE, ROUTE, LOADER = "pipeline.py", "route.py", "load_mixture.py"
CODE = {PIPELINE: "pipeline.py", ROUTE: "route.py", LOADER: "load_mixture.py"}
"""What users run, by the name in their folder, and what it is called here."""

_KINDS: dict[Form, str] = {"single-file": "model", "lora": "lora", "tensors": "tensors"}


def component_name(label: str) -> str:
    """What a component's folder or file is called: the label, and that it is that one only."""
    return f"{safe_name(label)}-only"


def component_place(form: Form, label: str) -> str:
    """The folder or file below an export's that holds one component alone; of an operator's, all are in one file."""
    if form == "diffusers":
        return f"components/{component_name(label)}"
    if form == "operator":
        return MIXTURE_FILE
    return f"{_KINDS[form]}-{component_name(label)}.safetensors"
