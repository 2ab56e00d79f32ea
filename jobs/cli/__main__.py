"""`python -m jobs.cli`."""

from jobs.cli.app import main

main()
