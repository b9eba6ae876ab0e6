"""The differentiable twin: any exporter's ONNX graph of an image classifier as a torch module with autograd.

ONNX Runtime judges, the twin only gives directions; it is compared with ONNX Runtime before anything relies
on it.
"""

from exporters.onnx_twin.graph import to_torch

__all__ = ["to_torch"]
