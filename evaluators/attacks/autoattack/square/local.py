"""Logits of images that differ from others, whose maps are known, in one square: only what changes is computed.

A square of 5 pixels changes 7x7 values behind a convolution of 3x3, then 9x9, and so on. So the first convolutions of a
network, which have the largest maps, are computed in windows. From the layer on where most of a map changes the network
is run as it is. The result differs from that of the whole network by rounding alone.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dgad_tk.ascent.folded import BATCH_NORMS, Folded
from dgad_tk.ascent.frozen_conv import FrozenConv2d
from dgad_tk.models import Normalize
from evaluators.attacks.autoattack.square.windows import Span, Window, positions
from evaluators.attacks.native import Victim
from evaluators.target.estimators import Counted, PredictorClassifier

WORTH = 0.6
"""Windows that cover more of a map than this are not worth cutting out."""
_ALL = 0.6
"""The same for all multiplications of a network."""
_TABLE = 2**22
"""Most entries of a table of positions, for images that are not too large."""
_POINTWISE_MODULES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.Identity, Normalize, *BATCH_NORMS)
_POINTWISE = {F.relu, torch.relu, F.relu6, F.silu, F.hardswish, F.batch_norm}
_SUMS = {operator.add, torch.add}
_Env = dict[fx.Node, Any]


def _nobody(images: int) -> None:
    """Nobody counts."""


@dataclass
class _Store:
    """A map of every image, the part of it that a proposal changes, and a pixel of zeros: `(N * size, C)`."""

    window: Window
    pixels: Tensor
    size: int
    old: Tensor  # positions of the window in the map, per place of the square


@dataclass
class _Plan:
    """What is done with a network for squares of one size.

    Attributes:
        windows: of the nodes that are computed in windows.
        tables: positions of what a reader reads of a node.
        share: of the network's multiplications.
    """

    windows: dict[fx.Node, Window] = field(default_factory=dict)
    tables: dict[tuple[fx.Node, fx.Node | None], Tensor] = field(default_factory=dict)
    parts: dict[tuple[fx.Node, fx.Node | None], Window] = field(default_factory=dict)
    share: float = 1.0


class Local:
    """A network that is asked about squares.

    Args:
        net: its graph.
        count: is told how many images pass.
    """

    def __init__(self, net: fx.GraphModule, count: Callable[[int], None]) -> None:
        self.net, self.count = net, count
        self.nodes: list[fx.Node] = list(net.graph.nodes)
        self.modules = dict(net.named_modules())
        self.stores: dict[fx.Node, _Store] = {}
        self.plans: dict[int, _Plan] = {}
        self.over = False

    @classmethod
    def of(cls, victim: Victim) -> Self | None:
        """The network of `victim` in float32 on a CPU, where its layers are known."""
        module, count = victim.module, _nobody
        if isinstance(module, Counted):
            module, count = module.module, module.count
        net = module.net if isinstance(module, Folded) else module
        predictor = victim.estimator.predictor if isinstance(victim.estimator, PredictorClassifier) else None
        if predictor is None or predictor.precision != "fp32" or predictor.finish or victim.device.type != "cpu":
            return None
        return cls(net, count) if isinstance(net, fx.GraphModule) else None

    @property
    def ready(self) -> bool:
        """It can be asked."""
        return bool(self.stores)

    def end(self) -> None:
        """Forget the images, and answer nothing more."""
        self.stores, self.over = {}, True

    def begin(self, images: Tensor, side: int) -> Tensor | None:
        """Take these images, `(N, C, H, W)`, for those that proposals differ from in a square of `side` pixels.

        Returns:
            Their logits; None where computing in windows does not pay.
        """
        self.stores = {}
        if self.over or (side in self.plans and self.plans[side].share > _ALL):
            return None
        maps: _Env = {}
        wanted = _Recording(self.net, maps)
        logits: Tensor = wanted.run(images)
        self.count(len(images))
        if side not in self.plans:
            self.plans[side] = self._planned(side, maps)
        self.plan = self.plans[side]
        if self.plan.share > _ALL:
            return None
        self.stores = {node: self._stored(node, maps[node]) for node in {node for node, _ in self.plan.tables}}
        self.rest, self.given = self._remainder()
        self.seen = next(_in_place(window) for node, window in self.plan.windows.items() if node.op == "placeholder")
        return logits

    def _planned(self, side: int, maps: _Env) -> _Plan:
        plan = _Plan()
        all_of_it = done = 0.0
        for node in self.nodes:
            value = maps.get(node)
            if not isinstance(value, Tensor) or value.dim() != 4:
                continue
            window = self._window(node, plan.windows, value, side)
            kernel = self._conv(node)
            work = 0.0 if kernel is None else kernel.weight[0].numel() * value[0].numel()
            all_of_it += work
            if window is not None and window.share <= WORTH:
                plan.windows[node] = window
                work *= window.share
            done += work
        plan.share = done / all_of_it if all_of_it else 1.0
        for node in self.nodes:
            inside = plan.windows.get(node)
            for before in dict.fromkeys(node.all_input_nodes):
                changed = plan.windows.get(before)
                if changed is None:
                    continue
                if inside is None:
                    part = Window(*(Span(torch.zeros_like(s.start), s.extent, 0) for s in (changed.rows, changed.columns)))
                    key = before, None
                elif (conv := self._conv(node)) is not None:
                    part = _read(conv, inside)
                    key = before, node
                elif inside.same(changed):
                    continue
                else:
                    part, key = inside, (before, node)
                if len(part.rows.start) * len(part.columns.start) * part.pixels > _TABLE:
                    plan.share = 1.0
                    return plan
                plan.parts[key], plan.tables[key] = part, positions(part, changed)
        return plan

    def _window(self, node: fx.Node, known: dict[fx.Node, Window], value: Tensor, side: int) -> Window | None:
        """What changes of a node's map; None where that is not known."""
        height, width = value.shape[2:]
        if node.op == "placeholder":
            return Window(Span.of_square(side, height), Span.of_square(side, width))
        before = [known.get(each) for each in node.all_input_nodes if each.op != "get_attr"]
        windows = [window for window in before if window is not None]
        if not windows or len(windows) < len(before):
            return None
        if (conv := self._conv(node)) is not None:
            kernel = conv.weight.shape[2:]
            rows, columns = (
                span.through(int(kernel[axis]), conv.stride[axis], conv.padding[axis], extent)
                for axis, (span, extent) in enumerate(
                    zip((windows[0].rows, windows[0].columns), (height, width), strict=True)
                )
            )
            return Window(rows, columns)
        if self._is_pointwise(node):
            return windows[0]
        if node.op == "call_function" and node.target in _SUMS and len(node.args) == 2 and not node.kwargs:
            if all(isinstance(each, fx.Node) for each in node.args):
                return windows[0].together(windows[-1])
        return None

    def _conv(self, node: fx.Node) -> FrozenConv2d | None:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        return module if isinstance(module, FrozenConv2d) and module.dilation == (1, 1) else None

    def _is_pointwise(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.modules[str(node.target)], _POINTWISE_MODULES)
        return node.op == "call_function" and node.target in _POINTWISE

    def _stored(self, node: fx.Node, value: Tensor) -> _Store:
        window = self.plan.windows[node]
        count, channels, height, width = value.shape
        size = height * width + window.pixels + 1
        pixels = value.new_zeros(count, size, channels)
        pixels[:, : height * width] = value.permute(0, 2, 3, 1).flatten(1, 2)
        return _Store(window, pixels.flatten(0, 1), size, _in_place(window))

    def _remainder(self) -> tuple[fx.GraphModule, list[fx.Node]]:
        """The part of the network that is run as it is, and the nodes that it is given."""
        graph, given = fx.Graph(), [node for node, reader in self.plan.tables if reader is None]
        env = {node: graph.placeholder(f"given_{number}") for number, node in enumerate(given)}
        for node in self.nodes:
            if node not in self.plan.windows and node.op != "placeholder":
                env[node] = graph.node_copy(node, env.__getitem__)
        return fx.GraphModule(self.net, graph), given

    def ask(self, proposals: Tensor, corners: Tensor, rows: Tensor | None) -> Tensor:
        """Logits of proposals.

        Args:
            proposals: all of them, `(N, H*W*C)`, channels last.
            corners: of the squares, `(n, 2)`.
            rows: which proposals to ask about, int64 `(n,)`; None for all.
        """
        count = len(corners)
        self.count(count)
        everywhere = len(proposals) == count and rows is None
        who = torch.arange(count) if rows is None else rows
        windows, values = self.plan.windows, {}
        for node, window in windows.items():
            if node.op == "placeholder":
                place = corners[:, 0] * len(window.columns.start) + corners[:, 1]
                pixels = window.rows.extent * window.columns.extent
                at = (self.seen.index_select(0, place) + (who * pixels)[:, None]).flatten()
                flat = proposals.view(len(proposals) * pixels, -1).index_select(0, at)
                value = flat.view(count, window.rows.size, window.columns.size, -1).permute(0, 3, 1, 2)
            elif (conv := self._conv(node)) is not None:
                value = _applied(conv, self._part(node.all_input_nodes[0], node, place, who))
            else:
                given = {
                    before: self._part(before, node, place, who)
                    if (before, node) in self.plan.tables
                    else values[before]
                    for before in node.all_input_nodes
                    if before in windows
                }
                value = self._run(node, given)
            values[node] = value
            if node in self.stores:
                store = self.stores[node]
                flat = value.permute(0, 2, 3, 1).flatten(1, 2)
                begin, end = store.size - 1 - window.pixels, store.size - 1
                pixels_of = store.pixels.view(-1, store.size, store.pixels.shape[1])
                if everywhere:
                    pixels_of[:, begin:end] = flat
                else:
                    pixels_of[who, begin:end] = flat
        self.place, self.who = place, who
        logits: Tensor = self.rest(*(self._part(node, None, place, who) for node in self.given))
        return logits

    def _part(self, node: fx.Node, reader: fx.Node | None, place: Tensor, who: Tensor) -> Tensor:
        store, part = self.stores[node], self.plan.parts[node, reader]
        at = self.plan.tables[node, reader].index_select(0, place).add_((who * store.size)[:, None])
        flat = store.pixels.index_select(0, at.flatten())
        return flat.view(len(place), part.rows.size, part.columns.size, -1).permute(0, 3, 1, 2)

    def _run(self, node: fx.Node, given: _Env) -> Any:
        args = fx.node.map_arg(node.args, lambda each: given[each] if each in given else self._constant(each))
        kwargs = fx.node.map_arg(node.kwargs, lambda each: given[each] if each in given else self._constant(each))
        if node.op == "call_module":
            return self.modules[str(node.target)](*args, **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _constant(self, node: fx.Node) -> Any:
        return operator.attrgetter(str(node.target))(self.net)

    def accept(self, accepted: Tensor) -> None:
        """The last proposals of these rows, bool `(n,)` of those that were asked about, are what is known from now."""
        at = accepted.nonzero()[:, 0]
        if len(at) == 0:
            return
        place, who = self.place[at], self.who[at]
        for store in self.stores.values():
            begin, pixels = store.size - 1 - store.window.pixels, store.window.pixels
            first = (who * store.size)[:, None]
            new = (first + torch.arange(begin, begin + pixels)).flatten()
            old = (first + store.old.index_select(0, place)).flatten()
            store.pixels.index_copy_(0, old, store.pixels.index_select(0, new))


class _Recording(fx.Interpreter):
    """Runs a graph and keeps what every node gives."""

    def __init__(self, net: fx.GraphModule, maps: _Env) -> None:
        super().__init__(net, garbage_collect_values=False)
        self.maps = maps

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.maps[n] = result
        return result


def _in_place(window: Window) -> Tensor:
    """Positions of a window in a map."""
    unchanged = (Span(torch.zeros_like(span.start), 0, span.extent) for span in (window.rows, window.columns))
    return positions(window, Window(*unchanged))


def _read(conv: FrozenConv2d, window: Window) -> Window:
    kernel = conv.weight.shape[2:]
    rows, columns = (
        span.read_by(int(kernel[axis]), conv.stride[axis], conv.padding[axis])
        for axis, span in enumerate((window.rows, window.columns))
    )
    return Window(rows, columns)


def _applied(conv: FrozenConv2d, part: Tensor) -> Tensor:
    weight, bias, _ = conv._kernel(part.dtype, part.device, False)
    return F.conv2d(part, weight, bias, conv.stride, 0, 1, conv.groups)
