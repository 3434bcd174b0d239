"""Stage functions become ONNX graphs: traced, cleaned, with launch plans attached."""
