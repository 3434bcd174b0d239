"""The plugin library, proven without a GPU: by host programs of its own, and by the real TensorRT for RTX."""
