"""Which layers of a network are computed in windows where a square of an image changes, and what each of them reads."""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dgad_tk.ascent.folded import BATCH_NORMS
from dgad_tk.ascent.frozen_conv import FrozenConv2d
from dgad_tk.models import Normalize
from evaluators.attacks.autoattack.square.windows import Span, Window, as_stored, positions

_WORTH = 0.6
"""Windows that cover more of a map than this are not worth cutting out."""
_TABLE = 2**22
"""Most entries of a table of positions, for images that are not too large."""
_POINTWISE_MODULES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.Identity, Normalize, *BATCH_NORMS)
_POINTWISE = {F.relu, torch.relu, F.relu6, F.silu, F.hardswish, F.batch_norm}
_SUMS = {operator.add, torch.add}
Edge = tuple[fx.Node, fx.Node | None]
"""A node and one that reads it; None for all that need its whole map."""


@dataclass
class Plan:
    """What is done with a network for squares of one size.

    Attributes:
        windows: of the nodes that are computed in windows, in their order.
        parts: what is read of them.
        tables: where that lies in a store, per place of the square.
        stored: where the windows lie in a map, per place of the square.
        share: of the network's multiplications that is left; 1 where windows cannot be had.
        saved: multiplications of an image that windows save.
        numbers: in the maps of an image that windows are read of.
        rest: the layers that are computed whole, of the maps that `given` names.
    """

    windows: dict[fx.Node, Window] = field(default_factory=dict)
    parts: dict[Edge, Window] = field(default_factory=dict)
    tables: dict[Edge, Tensor] = field(default_factory=dict)
    stored: dict[fx.Node, Tensor] = field(default_factory=dict)
    share: float = 1.0
    saved: float = 0.0
    numbers: int = 0
    rest: nn.Module = field(default_factory=nn.Identity)

    @property
    def read(self) -> list[fx.Node]:
        """The nodes that something is read of."""
        return list(dict.fromkeys(node for node, _ in self.tables))

    @property
    def given(self) -> list[fx.Node]:
        """The nodes whose whole maps are read."""
        return [node for node, reader in self.tables if reader is None]

    def place(self, corners: Tensor) -> Tensor:
        """The number of each place, of corners `(n, 2)`."""
        places: Tensor = corners[:, 0] * len(next(iter(self.windows.values())).columns.start) + corners[:, 1]
        return places


def plan(net: fx.GraphModule, maps: dict[fx.Node, Any], side: int) -> Plan:
    """The plan for squares of `side` pixels.

    Args:
        net: a network of frozen convolutions.
        maps: what each node gives for some images.
    """
    found, modules = Plan(), dict(net.named_modules())
    in_all = left = 0.0
    for node in net.graph.nodes:
        value = maps.get(node)
        if not isinstance(value, Tensor) or value.dim() != 4:
            continue
        window, conv = _window(node, modules, found.windows, value, side), conv_of(node, modules)
        work = 0.0 if conv is None else float(conv.weight[0].numel() * value[0].numel())
        in_all += work
        if window is not None and window.share <= _WORTH:
            found.windows[node] = window
            work *= window.share
        left += work
    for node in net.graph.nodes:
        for before in node.all_input_nodes:
            if (changed := found.windows.get(before)) is None:
                continue
            reader, part = node, found.windows.get(node)
            if part is None:
                reader, part = None, changed.whole
            elif (conv := conv_of(node, modules)) is not None:
                part = read_by(conv, part)
            elif part.same(changed):
                continue
            if len(part.rows.start) * len(part.columns.start) * part.pixels > _TABLE:
                return Plan()
            found.parts[before, reader], found.tables[before, reader] = part, positions(part, changed)
    if not found.windows:
        return found
    kept = dict.fromkeys([next(iter(found.windows)), *found.read])
    found.stored = {node: as_stored(found.windows[node]) for node in kept}
    found.numbers = sum(maps[node][0].numel() for node in found.read)
    found.share, found.saved = left / in_all if in_all else 1.0, in_all - left
    found.rest = _rest(net, found)
    return found


def _rest(net: fx.GraphModule, found: Plan) -> fx.GraphModule:
    graph = fx.Graph()
    env = {node: graph.placeholder(f"given_{number}") for number, node in enumerate(found.given)}
    for node in net.graph.nodes:
        if node not in found.windows and node.op != "placeholder":
            env[node] = graph.node_copy(node, env.__getitem__)
    return fx.GraphModule(net, graph)


def conv_of(node: fx.Node, modules: dict[str, nn.Module]) -> FrozenConv2d | None:
    """The convolution that a node calls, if its windows are known."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, FrozenConv2d) and module.dilation == (1, 1) else None


def read_by(conv: FrozenConv2d, window: Window) -> Window:
    """What a convolution reads to give `window`."""
    (height, width), (down, across), (above, beside) = conv.weight.shape[2:], conv.stride, conv.padding
    return Window(window.rows.read_by(height, down, above), window.columns.read_by(width, across, beside))


def _window(
    node: fx.Node, modules: dict[str, nn.Module], known: dict[fx.Node, Window], value: Tensor, side: int
) -> Window | None:
    """What changes of a node's map; None where that is not known."""
    height, width = value.shape[2:]
    if node.op == "placeholder":
        return Window(Span.of_square(side, height), Span.of_square(side, width))
    before = [known.get(each) for each in node.all_input_nodes if each.op != "get_attr"]
    windows = [window for window in before if window is not None]
    if not windows or len(windows) < len(before):
        return None
    first = windows[0]
    if (conv := conv_of(node, modules)) is not None:
        (high, wide), (down, across), (above, beside) = conv.weight.shape[2:], conv.stride, conv.padding
        rows = first.rows.through(high, down, above, height)
        return Window(rows, first.columns.through(wide, across, beside, width))
    if node.op == "call_module":
        return first if isinstance(modules[str(node.target)], _POINTWISE_MODULES) else None
    if node.op != "call_function":
        return None
    if node.target in _POINTWISE:
        return first
    maps = len(node.args) == 2 and all(isinstance(each, fx.Node) for each in node.args)
    return first.together(windows[-1]) if node.target in _SUMS and maps and not node.kwargs else None


def overwrites(net: fx.GraphModule) -> bool:
    """Whether a node may write into a tensor that another one reads too."""
    for node in net.graph.nodes:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if node.op == "call_module":
            writes = bool(getattr(net.get_submodule(str(node.target)), "inplace", False))
        else:
            writes = name.endswith("_") or name == "setitem" or (name.startswith("i") and hasattr(operator, name))
        written = node.args[0] if node.args else None
        if (writes or node.kwargs.get("inplace")) and isinstance(written, fx.Node) and len(written.users) > 1:
            return True
    return False
