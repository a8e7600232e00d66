"""Figures 5 to 7 of the paper in small: which runs they need, how these are run, and what their numbers say."""
