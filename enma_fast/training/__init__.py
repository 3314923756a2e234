"""Training: stages, augmentations, recipes and their runs, people's own data, and model cards.

A stage is a class in a file of its name: `tokenizer`, `dynamics`, `head`, `first_frame`, `forecasts`. `stage.py` says
what every stage does, and `recipes.py` imports each. Sizes and schedules of a model are data:
`enma_fast/recipes/NAME.toml`.
"""
