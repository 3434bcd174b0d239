"""Tests of exporter/checkpoint/."""
