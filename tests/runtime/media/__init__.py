"""Tests of runtime/media/."""
