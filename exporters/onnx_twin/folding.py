"""BatchNorm into the convolution before it, as ONNX Runtime does."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx

CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d}


def fold_batch_norm(graph: fx.Graph, constants: dict[str, Tensor]) -> None:
    """Replace each pair of a convolution and a BatchNorm that alone reads it by one convolution.

    Args:
        graph: changed in place.
        constants: the tensors that its `get_attr` nodes name; the new weights are added.
    """
    for norm in list(graph.nodes):
        if norm.op != "call_function" or norm.target is not F.batch_norm:
            continue
        conv = norm.args[0]
        if not isinstance(conv, fx.Node) or conv.target not in CONVOLUTIONS or len(conv.users) != 1:
            continue
        weight, bias = (_constant(node, constants) for node in (conv.args[1], conv.args[2]))
        mean, variance, scale, shift = (_constant(node, constants) for node in norm.args[1:5])
        if weight is None or mean is None or variance is None or scale is None or shift is None:
            continue
        if bias is None and conv.args[2] is not None:
            continue
        eps = norm.args[7]
        # In double: the factors are rounded once, not at every step on the way.
        factor = scale.double() / torch.sqrt(variance.double() + eps)
        shifted = shift.double() + factor * ((0 if bias is None else bias.double()) - mean.double())
        folded = weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1))
        kernel = conv.args[1]
        with graph.inserting_before(conv):
            new_weight = _add(graph, constants, f"{kernel}_folded", folded.to(weight.dtype))
            new_bias = _add(graph, constants, f"{kernel}_folded_bias", shifted.to(weight.dtype))
        conv.args = (conv.args[0], new_weight, new_bias, *conv.args[3:])
        norm.replace_all_uses_with(conv)
        graph.erase_node(norm)


def _constant(node: object, constants: dict[str, Tensor]) -> Tensor | None:
    """The tensor that a node stands for, if it is one that never changes."""
    return constants[str(node.target)] if isinstance(node, fx.Node) and node.op == "get_attr" else None


def _add(graph: fx.Graph, constants: dict[str, Tensor], stem: str, tensor: Tensor) -> fx.Node:
    name, count = stem, 1
    while name in constants:  # one weight may serve two convolutions
        count += 1
        name = f"{stem}_{count}"
    constants[name] = tensor
    return graph.get_attr(name)
