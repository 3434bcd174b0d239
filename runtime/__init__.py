"""turbotrt's runtime: bundles and the host-side mathematics of the rCM loop. No torch, no Triton."""
