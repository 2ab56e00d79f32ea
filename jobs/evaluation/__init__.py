"""Single edits, measured as TIME was published."""
