"""Codecs: field frames <-> latent frames.

`codec.py` says what every kind does. A new kind is a class in a file here and its config in
`enma_fast/config_codecs.py`, which names the class. No other list names it.
"""
