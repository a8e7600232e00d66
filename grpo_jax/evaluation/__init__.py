"""Held-out accuracy: greedy, mean, pass@k and maj@k, with intervals."""
