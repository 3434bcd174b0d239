"""The DiT: embed, block and head, their weights and their stages."""
