"""An edited model in every form that people load: local files in, local files out."""
