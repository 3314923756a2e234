"""Forecast stores on disk: layout, chunks, checks and repair. Nothing here depends on a model.

A change of the format goes here, and older stores must still open. Who writes which member, and when, is `runs`.
"""
