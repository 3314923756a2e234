"""Figures of forecasts, the HTML report, and the demonstration.

A plot goes here. The numbers in it are those of `evaluation` and `runs`: nothing is computed twice.
"""
