"""The report of an evaluation: schema, page, summary."""
