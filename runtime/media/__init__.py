"""From a prompt to a video, beside the DiT: text encoder, VAE, images and video files. No torch."""
