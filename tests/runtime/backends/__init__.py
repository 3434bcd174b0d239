"""Tests of runtime/backends/."""
