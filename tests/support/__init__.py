"""What tests share: bundles, checkpoints, oracles written a second time, stand-ins."""
