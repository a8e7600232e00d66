"""Measuring: workloads, what the machine can do, this system and others on them, and how cost grows with size."""
