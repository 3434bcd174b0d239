"""turbotrt's custom ops: declarations, Triton kernels, launch plans and the TensorRT plugins made from them."""
