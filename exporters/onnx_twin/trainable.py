"""A twin whose learned constants are parameters, so that a network which only a deployed file holds can be trained on.

A twin computes with the constants of its graph. Those that training learns become parameters: weights and biases of
products, scales and shifts of normalisations, slopes of PRelu (`operators.LEARNED`), and what is added to a product.
Convolutions, products with a matrix and BatchNorms become torch's own modules, which training and attacks know how to
run fast. BatchNorms have their batch's statistics in training mode again; in a file in which they are folded into the
convolutions there are none. Every other constant stays as it is: a normalisation of the images, masks, tables.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from exporters.onnx_twin.convolutions import constant_of, drop_unused, unused_name
from exporters.onnx_twin.operators import LEARNED


class BatchNorm(_BatchNorm):
    """BatchNorm over the second axis of images of any rank."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def make_trainable(twin: fx.GraphModule) -> None:
    """Turn the learned constants of a twin into parameters, in place. It computes the same as before in eval mode.

    Args:
        twin: of `to_torch`, with its BatchNorms as they are.
    """
    nodes: list[Any] = list(twin.graph.nodes)
    for node in nodes:
        if node.target is torch.matmul:
            _as_linear(twin, node)
    for node in list(twin.graph.nodes):
        if node.target in (F.conv2d, F.linear, F.batch_norm) and (module := _module_of(twin, node)) is not None:
            name = unused_name(twin, {F.conv2d: "conv", F.linear: "linear"}.get(node.target, "norm"))
            twin.add_submodule(name, module)
            with twin.graph.inserting_before(node):
                called = twin.graph.call_module(name, (node.args[0],))
            node.replace_all_uses_with(called)
            twin.graph.erase_node(node)
    for node in list(twin.graph.nodes):
        for position in LEARNED.get(node.target, ()):
            _learn(twin, node.args[position] if position < len(node.args) else None)
    drop_unused(twin)
    _rename(twin)


def count_learned(twin: nn.Module) -> tuple[int, int]:
    """Numbers in the parameters of a twin, and in its other constants of floating point, statistics left out."""
    learned = sum(parameter.numel() for parameter in twin.parameters())
    fixed = [tensor for name, tensor in twin.named_buffers() if "running_" not in name and tensor.is_floating_point()]
    return learned, sum(tensor.numel() for tensor in fixed)


def last_linear(twin: nn.Module) -> str:
    """Name of the linear layer whose answers are those of a twin; empty where it ends in something else."""
    if not isinstance(twin, fx.GraphModule):
        return ""
    (output,) = (node for node in twin.graph.nodes if node.op == "output")
    last: Any = output.args[0]
    found = isinstance(last, fx.Node) and last.op == "call_module"
    return str(last.target) if found and isinstance(twin.get_submodule(str(last.target)), nn.Linear) else ""


def _as_linear(twin: fx.GraphModule, node: fx.Node) -> None:
    """Write a product with a constant matrix, and what is added to it, as torch's linear function, in place."""
    x, matrix = node.args
    weight = constant_of(twin, matrix)
    if weight is None or weight.dim() != 2 or not weight.is_floating_point() or constant_of(twin, x) is not None:
        return
    sum_, bias = _added(twin, node, weight.shape[1])
    end: Any = sum_ or node
    with twin.graph.inserting_before(end):
        turned = _new_buffer(twin, weight.t().contiguous(), "matrix")
        shift = None if bias is None else _new_buffer(twin, bias.reshape(-1).clone(), "bias")
        linear = twin.graph.call_function(F.linear, (x, turned, shift))
    end.replace_all_uses_with(linear)
    twin.graph.erase_node(end)
    if sum_ is not None:
        twin.graph.erase_node(node)


def _added(twin: fx.GraphModule, node: fx.Node, width: int) -> tuple[fx.Node | None, Tensor | None]:
    """The sum of a product and a constant vector, and that vector, if the product is needed for nothing else."""
    users = list(node.users)
    if len(users) != 1 or users[0].target is not torch.add or len(users[0].args) != 2 or users[0].kwargs:
        return None, None
    others = [each for each in users[0].args if each is not node]
    vector = constant_of(twin, others[0]) if others else None
    if vector is None or not vector.is_floating_point() or list(vector.shape) not in ([width], [1, width]):
        return None, None
    return users[0], vector


def _module_of(twin: fx.GraphModule, node: Any) -> nn.Module | None:
    """torch's module of a function with constant weights of its own; None where they are computed or shared."""
    if node.target is F.batch_norm:
        return _batch_norm(twin, node)
    weight, bias = (constant_of(twin, each) for each in node.args[1:3])
    users = node.args[1].users if weight is not None else ()
    missing = bias is None and node.args[2] is not None
    if weight is None or missing or not weight.is_floating_point() or len(users) > 1:
        return None
    module: nn.Conv2d | nn.Linear
    if node.target is F.linear:
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    else:
        strides, padding, dilations, groups = node.args[3:7]
        out, per_group, height, width = weight.shape
        kernel_size, biased = (height, width), bias is not None
        module = nn.Conv2d(
            per_group * groups, out, kernel_size, strides, padding, dilations, groups, biased, device="meta"
        )
    module.weight = nn.Parameter(weight.detach().clone())
    module.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    return module.eval()


def _batch_norm(twin: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    x, *others = node.args
    read = [constant_of(twin, each) for each in others[:4]]
    if any(each is None for each in read):
        return None
    mean, variance, scale, shift = (each.detach().clone() for each in read if each is not None)
    producer: Any = x
    of_images = producer.op == "call_module" and isinstance(twin.get_submodule(producer.target), nn.Conv2d)
    kind = nn.BatchNorm2d if of_images else BatchNorm
    module = kind(len(mean), eps=float(others[6]), dtype=mean.dtype)  # type: ignore[arg-type]
    module.running_mean, module.running_var = mean, variance
    module.weight, module.bias = nn.Parameter(scale), nn.Parameter(shift)
    return module.eval()


def _learn(twin: fx.GraphModule, node: object) -> None:
    """Make a constant of floating point a parameter, under its own name."""
    tensor = constant_of(twin, node)
    if tensor is None or isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
        return
    assert isinstance(node, fx.Node)
    delattr(twin, str(node.target))
    twin.register_parameter(str(node.target), nn.Parameter(tensor.detach().clone()))


def _rename(twin: fx.GraphModule) -> None:
    """Give other names to constants that are called as torch's exporter calls its own, in place.

    It numbers what it makes `val_0`, `val_1`, and does not see that a network has such a name already.
    """
    for node in twin.graph.nodes:
        before = str(node.target)
        if node.op == "get_attr" and before.startswith("val_") and hasattr(twin, before):
            tensor, after = getattr(twin, before), unused_name(twin, f"constant_{before}")
            delattr(twin, before)
            if isinstance(tensor, nn.Parameter):
                twin.register_parameter(after, tensor)
            else:
                twin.register_buffer(after, tensor)
            for other in twin.graph.nodes:
                if other.op == "get_attr" and other.target == before:
                    other.target = after
    twin.recompile()


def _new_buffer(twin: fx.GraphModule, tensor: Tensor, stem: str) -> fx.Node:
    name = unused_name(twin, stem)
    twin.register_buffer(name, tensor)
    return twin.graph.get_attr(name)
