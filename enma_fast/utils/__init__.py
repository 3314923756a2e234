"""Safe files, names, bounds, launches and machine: helpers for all packages. Nothing here depends on a model."""
