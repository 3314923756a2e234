"""Toys: a decoder, a codec, a context and an equation, each a file that no other file of the package lists."""
