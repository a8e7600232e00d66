"""Sources of problems, one kind a file: each has a `Config` and `build(config, seed) ->
Sequence[Problem]`."""
