"""Triton kernels, one file per op of ``enma_fast.ops``; installs as ``enma_fast.kernels``.

Importing this package imports no Triton: ``enma_fast.ops`` imports a kernel file once it has chosen it.
"""
