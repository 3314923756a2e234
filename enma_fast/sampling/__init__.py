"""Sampling frames and trajectories from a model: the reference, and faster implementations with the same values."""
