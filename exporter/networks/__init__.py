"""The networks as functions of tensors, and beside each what its stages take, hold and give."""
