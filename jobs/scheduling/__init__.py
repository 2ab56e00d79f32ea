"""Audits through time: ticks, the history of a series, and its page."""
