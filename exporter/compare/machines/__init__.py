"""Who takes part in a comparison: each computes the same stages in its own way."""
