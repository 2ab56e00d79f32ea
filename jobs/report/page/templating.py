"""What the pages share: templates with autoescaping, and parts that go in verbatim."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

__all__ = ["page_environment", "part"]


def page_environment() -> Environment:
    """An environment for the templates of this package; names and prompts in them are users' text, and escaped."""
    return Environment(
        loader=PackageLoader("jobs.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def part(name: str) -> Markup:
    """Read a stylesheet or script of ours, verbatim: it is no template and is not escaped."""
    loader = PackageLoader("jobs.report.page")
    return Markup(loader.get_source(page_environment(), name)[0])  # noqa: S704 - our own file, not a user's text
