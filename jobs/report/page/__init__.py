"""The page of an audit's report: one file, which needs no network."""
