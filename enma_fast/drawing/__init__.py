"""Drawings of arrays: maps, fan charts and calibration of one forecast, saved as a picture or a movie.

Everything drawn comes in as arrays and numbers, so every room above may draw.
"""
