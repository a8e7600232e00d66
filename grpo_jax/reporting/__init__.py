"""What a run shows: metrics, progress, its environment, rollouts, and one HTML report."""
