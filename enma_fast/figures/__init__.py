"""Figures of forecasts, and the report page."""
