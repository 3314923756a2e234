"""Scores of forecasts, of files and of stores, and the paper's own figures beside them.

A score is a function of arrays and a row of `metrics/table.py`, whose columns commands, report and card show.
"""
