"""Completions from a policy: prefill once a prompt, one compiled decode loop, exact log-probabilities."""
