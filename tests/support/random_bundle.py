"""A runnable bundle of random packed weights, made without a checkpoint, a trace or a build."""

from __future__ import annotations

from exporter.bench.random_bundle import facts, make_random_bundle, write_weights

__all__ = ["facts", "make_random_bundle", "write_weights"]
