"""Tests of exporter/builder/."""
