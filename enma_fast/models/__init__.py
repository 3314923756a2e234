"""The parts of the model in the order data passes them, the joined model, and checkpoints."""
