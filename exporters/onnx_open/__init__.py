"""From a checked ONNX graph to a Predictor."""
