"""Convolutions of a twin with constant weights: BatchNorm folded into them, and frozen for an attack."""

import itertools
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dgad_tk.ascent.frozen_conv import FrozenConv2d, rectify_in_place

FOLDABLE = {F.conv1d, F.conv2d, F.conv3d}


def fold_batch_norm(twin: fx.GraphModule) -> None:
    """Replace each pair of a convolution and a BatchNorm that alone reads it by one convolution, in place.

    ONNX Runtime does so too.
    """
    nodes: list[Any] = list(twin.graph.nodes)
    for norm in nodes:
        if norm.target is not F.batch_norm:
            continue
        conv = norm.args[0]
        if conv.target not in FOLDABLE or len(conv.users) != 1:
            continue
        x, kernel, shift, *others = conv.args
        read = [constant_of(twin, node) for node in (kernel, *norm.args[1:5])]
        bias = constant_of(twin, shift)
        if any(tensor is None for tensor in read) or (bias is None and shift is not None):
            continue
        # In double: the factors are rounded once, not at every step on the way.
        weight, mean, variance, scale, offset = (tensor.double() for tensor in read if tensor is not None)
        bias = None if bias is None else bias.double()
        folded = fuse_conv_bn_weights(weight, bias, mean, variance, norm.args[7], scale, offset)
        new = []
        for tensor, name in zip(folded, ("folded", "folded_bias"), strict=True):
            name = unused_name(twin, f"{kernel}_{name}")
            twin.register_buffer(name, tensor.detach().to(getattr(twin, kernel.target).dtype))
            with twin.graph.inserting_before(conv):
                new.append(twin.graph.get_attr(name))
        conv.args = (x, *new, *others)
        norm.replace_all_uses_with(conv)
        twin.graph.erase_node(norm)


def freeze_convolutions(twin: fx.GraphModule) -> None:
    """Put a FrozenConv2d, which gives gradients to its input alone, in the place of each two-dimensional convolution.

    Args:
        twin: changed in place, once and for all: it is in eval mode, and its weights stay as they are.
    """
    nodes: list[Any] = list(twin.graph.nodes)
    for node in nodes:
        if node.target is not F.conv2d:
            continue
        x, weight, bias, strides, padding, dilations, groups = node.args
        kernel, shift = constant_of(twin, weight), constant_of(twin, bias)
        if kernel is None or not kernel.is_floating_point() or (shift is None and bias is not None):
            continue
        out, per_group, height, width = kernel.shape
        size = height, width
        conv = nn.Conv2d(per_group * groups, out, size, strides, padding, dilations, groups, device="meta")
        conv.weight = nn.Parameter(kernel, requires_grad=False)
        conv.bias = None if shift is None else nn.Parameter(shift, requires_grad=False)
        name = unused_name(twin, "conv")
        twin.add_submodule(name, FrozenConv2d(conv))
        with twin.graph.inserting_before(node):
            frozen = twin.graph.call_module(name, (x,))
        node.replace_all_uses_with(frozen)
        twin.graph.erase_node(node)
    rectify_in_place(twin)
    drop_unused(twin)


def constant_of(twin: fx.GraphModule, node: object) -> Tensor | None:
    """The tensor that a node stands for; None where it is computed."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = getattr(twin, str(node.target), None)
    return value if isinstance(value, Tensor) else None


def unused_name(twin: fx.GraphModule, stem: str) -> str:
    """A name that no weight of the file has."""
    return next(name for count in itertools.count() if not hasattr(twin, name := f"{stem}_{count}"))


def drop_unused(twin: fx.GraphModule) -> None:
    """Leave only nodes, modules and weights that the answer depends on, and write the code anew."""
    twin.graph.eliminate_dead_code()
    twin.graph.lint()
    twin.recompile()
    twin.delete_all_unused_submodules()
    read = {node.target for node in twin.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in twin.named_buffers(recurse=False) if name not in read]:
        delattr(twin, name)
