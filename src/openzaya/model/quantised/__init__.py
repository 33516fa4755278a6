"""Weights in 4 and 8 bits: rounding, packing, the reference product, the container on disk; see docs/quantised.md."""
