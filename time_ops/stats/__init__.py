"""Statistics of an audit and of an evaluation: numpy and scipy, no torch, no Ray."""
