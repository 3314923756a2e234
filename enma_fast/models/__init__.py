"""The parts of the model in the order data passes them, the joined model, and checkpoints.

A change to the architecture goes here, with its switch in `config`; how a frame is sampled from it is `sampling`.
"""
