"""Tests of exporter/networks/."""
