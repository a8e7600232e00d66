"""The policy network: its maths, wiring, key-value cache, log-probabilities and Hugging Face files."""
