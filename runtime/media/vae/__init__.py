"""The VAE's walk over a video: chunks, tiles, and the plan that keeps them within memory."""
