"""The umT5 text encoder: its block, its norm and their stages."""
