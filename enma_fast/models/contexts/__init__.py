"""Contexts: past frames -> what a decoder is told of them.

`context.py` says what every kind does. A new kind is a class in a file here and its config in
`enma_fast/config.py`, which names the class. No other list names it.
"""
