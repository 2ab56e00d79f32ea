"""Which edit: solved on the workers, and the searches for its strengths."""
