"""The three trainings, their recipes, and the card of the model that they give.

A loss, an optimiser or a step of a recipe goes here; sizes and schedules of a preset are data in `presets`.
"""
