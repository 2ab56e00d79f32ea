"""The published JSON Schema of `report.json`, made from the models in `jobs.report.schema`.

python -m jobs.report.json_schema > jobs/report/report.schema.json      # after a change of the models

`evenhand report --schema` prints it. Its `version` is the report's `schema_version`: a reader that knows it can read
every report of that version. Figures that an older Evenhand left out stand in it as it writes them now.
"""

from __future__ import annotations

import json
import sys
from importlib import resources

from jobs.report.schema import SCHEMA_VERSION, Report

__all__ = ["made_schema", "published_schema"]


def made_schema() -> str:
    """The schema as the models have it, JSON Schema draft 2020-12, as text."""
    schema = Report.model_json_schema(mode="serialization")
    properties = schema["properties"]
    properties["schema_version"] = {"const": SCHEMA_VERSION, "title": "Schema Version", "type": "integer"}
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:evenhand:report:{SCHEMA_VERSION}",
        "title": "Evenhand report",
        "version": SCHEMA_VERSION,
    }
    return json.dumps(head | {key: value for key, value in schema.items() if key != "title"}, indent=1) + "\n"


def published_schema() -> str:
    """The schema as it is shipped beside this module."""
    return resources.files("jobs.report").joinpath("report.schema.json").read_text("utf-8")


if __name__ == "__main__":
    sys.stdout.write(made_schema())
