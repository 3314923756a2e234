"""Files that `enma_fast.load_model` and the shipped test data find here."""
