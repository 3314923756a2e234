"""Scores of forecasts, of files and of stores, and the paper's own figures beside them.

A score goes here, as a function of arrays. How it is shown is `commands` and `figures`.
"""
