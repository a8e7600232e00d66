"""Every method as a value: how rewards become advantages, tokens weights, and log-probabilities a loss."""
