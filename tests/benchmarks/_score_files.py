"""A score file of one row."""


def file_of(method="fast", *, seed=0, rel_l2=0.02, equation="combined", kind="model", **row):
    """A score file of one row."""
    row = {
        "protocol": "whole",
        "task": "temporal",
        "split": "test-in",
        "members": 16,
        "trajectories": 1200,
        "frames": 17,
        "rel_l2": rel_l2,
        "rel_l2_median": rel_l2 / 2,
        "cpu_seconds_per_member": 0.003,
    } | row
    return {
        "method": method,
        "kind": kind,
        "equation": equation,
        "seed": seed,
        "cpu_seconds": 100.0,
        "num_parameters": 2_000_000,
        "weights": None,
        "data": {f"{equation}-test-in.h5": "ab" * 32},
        "machine": {"cpu": "a processor", "threads": 1, "gpu": None},
        "rows": [row],
    }
