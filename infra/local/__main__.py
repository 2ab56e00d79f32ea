"""Run the embedded cluster's commands: `python -m infra.local up`."""

from infra.local.commands import app

app(prog_name="evenhand local")
