"""Figures of forecast stores, the HTML report, and the demonstration.

`drawing` draws. The numbers are those of `evaluation` and `runs`: nothing is computed twice.
"""
