"""Convolutions of a twin as modules that only give gradients to their input, which is all that an attack asks for."""

import itertools

import torch.nn.functional as F
from torch import Tensor, fx, nn

from dgad_tk.ascent.frozen_conv import FrozenConv2d, rectify_in_place


def freeze_convolutions(twin: fx.GraphModule) -> None:
    """Put a FrozenConv2d in the place of each two-dimensional convolution.

    Args:
        twin: changed in place, once and for all: it is in eval mode, and its weights stay as they are.
    """
    for node in list(twin.graph.nodes):
        if node.op != "call_function" or node.target is not F.conv2d:
            continue
        x, weight, bias, strides, padding, dilations, groups = node.args
        kernel, shift = _constant(twin, weight), _constant(twin, bias)
        if kernel is None or not kernel.is_floating_point() or (shift is None and bias is not None):
            continue
        name = _unused_name(twin)
        twin.add_submodule(name, FrozenConv2d(_conv(kernel, shift, strides, padding, dilations, groups)))
        with twin.graph.inserting_before(node):
            frozen = twin.graph.call_module(name, (x,))
        node.replace_all_uses_with(frozen)
        twin.graph.erase_node(node)
    twin.graph.eliminate_dead_code()
    rectify_in_place(twin)
    twin.graph.lint()
    twin.recompile()
    twin.delete_all_unused_submodules()
    read = {node.target for node in twin.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in twin.named_buffers(recurse=False) if name not in read]:
        delattr(twin, name)


def _unused_name(twin: fx.GraphModule) -> str:
    """A name that no weight of the file has."""
    return next(name for count in itertools.count() if not hasattr(twin, name := f"conv_{count}"))


def _constant(twin: fx.GraphModule, node: object) -> Tensor | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = getattr(twin, str(node.target), None)
    return value if isinstance(value, Tensor) else None


def _conv(
    weight: Tensor, bias: Tensor | None, strides: list[int], padding: list[int], dilations: list[int], groups: int
) -> nn.Conv2d:
    out, per_group, height, width = weight.shape
    conv = nn.Conv2d(
        per_group * groups,
        out,
        (height, width),
        (strides[0], strides[1]),
        (padding[0], padding[1]),
        (dilations[0], dilations[1]),
        groups,
        bias=bias is not None,
        device="meta",
    )
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return conv
