"""ONNX files that answer with one number per image: is it a probability, and what stands before it?"""
