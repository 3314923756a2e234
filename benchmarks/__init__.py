"""Benchmarks; every number comes with machine, versions, baseline and ceiling, from interleaved runs."""
