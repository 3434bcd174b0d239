"""Tests of exporter/bench/."""
