"""Contexts: what is known of the past of a frame. A kind is a class here and a config of it in `enma_fast.config`."""
