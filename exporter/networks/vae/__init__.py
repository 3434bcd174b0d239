"""The Wan2.1 VAE as functions of tensors: a decoder and an encoder that work chunk by chunk."""
