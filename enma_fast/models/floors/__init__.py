"""Kinds of floor."""
