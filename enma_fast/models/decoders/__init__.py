"""Decoders: what the context says, and noise -> a latent frame.

`decoder.py` says what every kind does. A new kind is a class in a file here and its config in
`enma_fast/config_decoders.py`, which names the class. No other list names it.
"""
