"""Sampling frames and trajectories from a model: the reference, and faster implementations with the same values.

`reference` says what the values are; `native` (one call of the extension), `static_step` and `cuda_graphs` follow it. A
change of the sampler goes to all of them, and a parameter that one does not know is refused. Fields are `forecasting`.
"""
