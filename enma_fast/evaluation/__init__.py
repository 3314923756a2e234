"""Scores of forecasts, of files and of stores, and the paper's own figures beside them."""
