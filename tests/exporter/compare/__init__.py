"""Tests of exporter/compare/."""
