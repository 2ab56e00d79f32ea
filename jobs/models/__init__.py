"""A model on this node: fetched, known by its tensors, checked, kept in the store."""
