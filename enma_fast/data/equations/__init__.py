"""Equations: one module for each."""
