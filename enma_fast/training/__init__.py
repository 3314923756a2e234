"""The three trainings, their recipes, and the card of the model that they give."""
