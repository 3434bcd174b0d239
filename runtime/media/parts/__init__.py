"""The parts of prompt → video on one device: text encoder, VAE encoder, DiT, decoder; their plan and their times."""
