"""``turbotrt compare``: what quantization, sparsity, graphs, kernels and engines cost in accuracy, by Polygraphy."""
