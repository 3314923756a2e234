"""Training: stages, each in a file of its name, augmentations, recipes and their runs, own data, and model cards.

A loss or the settings of a stage go here; sizes and schedules of a model are data in `enma_fast/recipes`.
"""
