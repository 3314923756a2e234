"""Figures of forecasts, the HTML report, and the demonstration."""
