"""Decoders: context and noise -> a latent frame. A kind is a class here and a config of it in `enma_fast.config`."""
