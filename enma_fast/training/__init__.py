"""The stages of training, each in a file of its name, their recipes, training on own data, and model cards.

A loss, an optimiser or a step of a recipe goes here; sizes and schedules of a preset are data in `presets`.
"""
