"""Safe files, names, bounds, launches and machine: helpers for all packages. Nothing here depends on a model.

A helper comes here with its second caller, and not before.
"""
