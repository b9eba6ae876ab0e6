"""Model files: written and verified (`export`), opened (`formats`), differentiated (`onnx_twin`), timed (`latency`)."""
