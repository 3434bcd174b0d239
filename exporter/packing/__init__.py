"""Weights made ready for engines: quantized, merged, packed into one file, or kept from the bundle before."""
