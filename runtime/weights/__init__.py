"""Packed weights on their way to the device: the plan, the file, the stream and the upload."""
