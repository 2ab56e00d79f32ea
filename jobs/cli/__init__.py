"""The command line."""

from jobs.cli.app import app, main

__all__ = ["app", "main"]
