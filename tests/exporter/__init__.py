"""The export, whole and by room."""
