"""The torch backend: the traced functions on torch tensors, behind the runtime's own protocol."""
