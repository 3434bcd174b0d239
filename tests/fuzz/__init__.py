"""Hostile files, made at random from a seed: a target for each reader. ``make fuzz`` runs them as long as one asks."""
