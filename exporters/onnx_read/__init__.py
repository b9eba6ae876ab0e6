"""From a stranger's bytes to a checked ONNX graph."""
