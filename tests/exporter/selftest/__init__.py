"""Tests of exporter/selftest/."""
