"""Histories and contexts of the three tasks."""

from .._tiny import waves

FRAMES = 8
# Observed frames, and True if there is a context.
TASKS = {"temporal": (3, False), "initial-value": (1, True), "generation": (0, True)}


def inputs(made, task, batch=2):
    """History and context for two trajectories."""
    observed, has_context = task
    fields = waves(batch, 2, FRAMES, made.config.codec)
    history = fields[::2, :observed] if observed else None
    return {"history": history, "context": fields[1::2] if has_context else None}


def single(given, b):
    return {key: None if value is None else value[b] for key, value in given.items()}
