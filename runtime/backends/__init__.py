"""What runs a bundle's stages: the protocol, the backends by name, and TensorRT's own."""
