"""Codecs: field frames <-> latent frames. A kind is a class here and a config of it in `enma_fast.config`."""
