"""What the images say: labels counted, figures, gates, and the report of a run."""
