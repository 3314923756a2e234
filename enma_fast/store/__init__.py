"""Forecasts on disk: layout, chunks, checks and repair. Nothing here knows a model."""
