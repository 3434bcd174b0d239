"""Ops: references, kernels, plans, the plugin's life."""
