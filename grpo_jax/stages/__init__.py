"""The stages of a pipeline, each a function that reads top to bottom in the order in which things happen."""
