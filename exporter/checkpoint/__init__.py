"""Reading checkpoints in every published form."""
