"""Graphs of frozen convolutions: a sum becomes part of the convolution before it, two of one input are joined."""

import operator
from collections import Counter

import torch
import torch.nn.functional as F
from torch import fx, nn

from dgad_tk.frozen_conv import FrozenConv2d, branches, can_branch

RELUS = {F.relu, torch.relu}
SUMS = {operator.add, torch.add}


def join(graph_module: fx.GraphModule) -> None:
    """Put strided shortcuts beside the convolution that reads the same input, and sums and ReLUs into convolutions.

    Args:
        graph_module: changed in place; it is not recompiled. Its weights keep their names.
    """
    modules = dict(graph_module.named_modules())
    calls = Counter(node.target for node in graph_module.graph.nodes if node.op == "call_module")
    frozen = {
        node: module
        for node in graph_module.graph.nodes
        if node.op == "call_module" and calls[node.target] == 1 and type(module := modules[node.target]) is FrozenConv2d
    }
    for shortcut in list(frozen):
        _put_beside(shortcut, frozen, modules)
    for conv in list(frozen):
        _take_sum_in(conv, frozen[conv], modules)


def is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node is max(0, ·), as a module or as a function."""
    if node.op == "call_module":
        return type(modules[str(node.target)]) is nn.ReLU
    return node.op == "call_function" and node.target in RELUS


def _put_beside(shortcut: fx.Node, frozen: dict[fx.Node, FrozenConv2d], modules: dict[str, nn.Module]) -> None:
    """Compute a strided 1x1 convolution together with one before it that reads the same."""
    x = shortcut.args[0]
    main, between = shortcut.prev, [shortcut]
    while main.op != "root" and (main not in frozen or main.args[0] is not x):
        between.append(main)
        main = main.prev
    if main.op == "root" or not can_branch(frozen[main], frozen[shortcut]) or any(_writes(n, modules) for n in between):
        return
    graph = main.graph
    with graph.inserting_before(main):
        pair = [graph.get_attr(str(each.target)) for each in (main, shortcut)]
        both = graph.call_function(branches, (*pair, x))
        parts = [graph.call_function(operator.getitem, (both, index)) for index in (0, 1)]
    for each, part in zip((main, shortcut), parts, strict=True):
        each.replace_all_uses_with(part)
        graph.erase_node(each)
        del frozen[each]


def _take_sum_in(conv: fx.Node, module: FrozenConv2d, modules: dict[str, nn.Module]) -> None:
    """Let a convolution add what the next node, which alone reads it, would, and rectify what comes out of that."""
    total = conv.next
    if module.relu or list(conv.users) != [total] or len(total.args) != 2 or total.kwargs:
        return
    if total.op != "call_function" or total.target not in SUMS:
        return
    first, second = total.args
    if first is second:
        return
    conv.args = (conv.args[0], second if first is conv else first)
    total.replace_all_uses_with(conv)
    conv.graph.erase_node(total)
    reader = next(iter(conv.users)) if len(conv.users) == 1 else None
    if reader is not None and is_relu(reader, modules):
        module.relu = True
        reader.replace_all_uses_with(conv)
        conv.graph.erase_node(reader)


def _writes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node may change a tensor that another node made. A frozen convolution writes to its own alone."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") or name == "setitem" or (name.startswith("i") and hasattr(operator, name))
    return node.op in ("call_method", "call_function") and (in_place or bool(node.kwargs.get("inplace")))
