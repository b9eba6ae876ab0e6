"""Products of matrices, and sums of products."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exporters.onnx_twin.node import NodeView
from exporters.onnx_twin.operators.row import Operator, row
from exporters.onnx_twin.tracing import call


def gemm(node: NodeView, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    if node.attribute("transA", False):
        a = call(torch.t, a)
    transposed = node.attribute("transB", False)
    node.ignore("broadcast")  # before opset 7 it allowed what is allowed since
    if alpha != 1:
        b = call(torch.mul, b, alpha)
    if c is not None and beta != 1:
        c = call(torch.mul, c, beta)
    if isinstance(b, Tensor) and (c is None or (isinstance(c, Tensor) and c.dim() == 1 and c.numel() > 1)):
        # As a Linear layer; a constant is transposed here, once.
        return call(F.linear, a, b if transposed else b.t().contiguous(), c)
    product = call(torch.matmul, a, call(torch.t, b) if transposed else b)
    return product if c is None else call(torch.add, product, c)


def einsum(node: NodeView, *inputs: Tensor) -> Any:
    return call(torch.einsum, node.required("equation", str), *inputs)


OPERATORS: dict[str, Operator] = {
    "Det": row(torch.det),
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": row(torch.matmul),
}
