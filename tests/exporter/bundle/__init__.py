"""Tests of exporter/bundle/."""
