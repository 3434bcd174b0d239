"""Block-128 INT8 quantization of activations."""
