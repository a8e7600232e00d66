"""Rewards: from completions to numbers. Host rewards read strings, array rewards read the rollout's arrays."""
