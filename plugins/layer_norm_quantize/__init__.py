"""LayerNorm, modulation and block-128 INT8 quantization."""
