"""The bundle's folder: swapped whole, with Polygraphy's files and the VRAM estimate."""
