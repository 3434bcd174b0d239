"""The runtime, whole and by room."""
