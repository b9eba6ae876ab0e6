"""A deployed ONNX file as a student: its graph is trained on, kept with the weights, and exported again."""
