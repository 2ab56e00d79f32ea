"""The report of a run: its schema (`report.json`), its numbers, and its page (`report.html`)."""
