"""Tests of runtime/weights/."""
