"""Programs of a model: run where they can harm nothing, and answered with bounded text."""
