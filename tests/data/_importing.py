"""Sizes, axes and steps of the fields that tests import."""

N, T, X, Y = 4, 6, 8, 5
LINE = ("trajectory", "time", "x")
STEPS = {"dt": 0.05, "spacing": (0.1,)}
