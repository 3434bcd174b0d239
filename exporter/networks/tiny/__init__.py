"""TAEHV's decoder as functions of tensors: frames from the same latents as the VAE's, at a fraction of its work."""
