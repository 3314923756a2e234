"""The kinds of decoders, one file each: what decides the latent frames of a trajectory."""
