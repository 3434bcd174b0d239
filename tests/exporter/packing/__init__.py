"""Tests of exporter/packing/."""
