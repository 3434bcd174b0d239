"""Engines: TensorRT in a child process, one stage at a time or all in one file."""
