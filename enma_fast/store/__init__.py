"""Forecast stores on disk: layout, chunks, checks and repair. Nothing here depends on a model."""
