"""What the rows of an ONNX file's output mean: logits, probabilities, or one number per image for two classes."""
