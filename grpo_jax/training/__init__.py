"""Updates: optimizer, train state, the policy and the supervised step, checkpoints."""
