"""turbotrt's exporter: checkpoints → packed weights, stage modules → ONNX → TensorRT engines → bundle."""
