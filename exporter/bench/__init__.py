"""What the kernels are and give: timed on the GPU at hand, tuned, and estimated for others."""
