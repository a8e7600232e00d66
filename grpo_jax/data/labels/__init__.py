"""Labelled solutions for reward models: one file a published form, `labels: {kind: math_shepherd}`. Each builds a list
of `data.labelled.Labelled` or `data.labelled.Preference`."""
