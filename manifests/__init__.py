"""What to edit: the manifest's schema, reading, checking, building; and the shipped 35-profession manifest.

Pure: pyarrow and pydantic, no model. `manifests.build` needs inflect.
"""

from manifests.edit_sets import EditSet, PromptPair, TestedEdit, read_edit_set
from manifests.errors import Fault, ManifestError
from manifests.read import PromptChecker, check_with, iter_rows, read_manifest
from manifests.schema import (
    SCHEMA,
    Destination,
    Manifest,
    ManifestRow,
    Profession,
    resolved_shares,
    resolved_targets,
)
from manifests.write import manifest_bytes, manifest_table, write_manifest

__all__ = [
    "SCHEMA",
    "Destination",
    "EditSet",
    "Fault",
    "Manifest",
    "ManifestError",
    "ManifestRow",
    "Profession",
    "PromptChecker",
    "PromptPair",
    "TestedEdit",
    "check_with",
    "iter_rows",
    "manifest_bytes",
    "manifest_table",
    "read_edit_set",
    "read_manifest",
    "resolved_shares",
    "resolved_targets",
    "write_manifest",
]
