"""Frames and trajectories from a model: the reference, and every faster path to the same values."""
