"""The process that draws. Drivers never import it."""
