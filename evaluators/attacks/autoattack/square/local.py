"""Logits of images that differ from others, whose maps are known, in one square: only what changes is computed.

A square of 5 pixels changes 7x7 values behind a convolution of 3x3, then 9x9, and so on. So the first convolutions of a
network, which have the largest maps, are computed in windows. From the layer on where most of a map changes the network
is run as it is. The result differs from that of the whole network by rounding alone.
"""

import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dgad_tk.ascent.folded import Folded
from dgad_tk.ascent.frozen_conv import FrozenConv2d
from evaluators.attacks.autoattack.square.reach import Plan, conv_of, overwrites, plan
from evaluators.attacks.autoattack.square.windows import Window
from evaluators.attacks.native import Victim
from evaluators.target.estimators import Counted, PredictorClassifier

PAYS = 0.7
"""Share of the multiplications that windows may leave."""
LEAST = 3e7
"""Multiplications of an image that windows have to save where the whole network is asked by another runtime than torch.
ONNX Runtime is a quarter faster than torch on small networks, which is as much as windows save there."""
TOGETHER = 2e8
"""The same for all images together: cutting out and putting in takes a millisecond or two, however few they are."""
MOST = 2**26
"""Numbers in all maps that are kept."""
NEAR = 1e-3
"""Largest difference of a logit from the runtime's, relative to how far apart an image's logits are."""
_Env = dict[fx.Node, Any]


def _nobody(images: int) -> None:
    """Nobody counts."""


@dataclass
class _Store:
    """A map of every image, the part of it that a proposal changes, and a pixel of zeros.

    Attributes:
        images: `(N, size, C)`.
        pixels: the same memory, `(N * size, C)`.
        news: the parts that change, the same memory, `(N, pixels, C)`.
        first: where each image begins in `pixels`, `(N, 1)`.
        window: what changes.
        old: positions of the window in a map, per place of the square, `(places, pixels)`.
        new: positions of what changes, `(pixels,)`.
    """

    images: Tensor
    window: Window
    old: Tensor
    pixels: Tensor = field(init=False)
    news: Tensor = field(init=False)
    first: Tensor = field(init=False)
    new: Tensor = field(init=False)

    def __post_init__(self) -> None:
        count, size, _ = self.images.shape
        self.pixels, self.first = self.images.flatten(0, 1), torch.arange(0, count * size, size)[:, None]
        self.news = self.images[:, size - 1 - self.window.pixels : size - 1]
        self.new = torch.arange(size - 1 - self.window.pixels, size - 1)

    @classmethod
    def of(cls, value: Tensor, window: Window, old: Tensor) -> Self:
        """Of a map `(N, C, H, W)`."""
        count, channels, height, width = value.shape
        images = value.new_zeros(count, height * width + window.pixels + 1, channels)
        images[:, : height * width] = value.permute(0, 2, 3, 1).flatten(1, 2)
        return cls(images, window, old)

    def put(self, value: Tensor, who: Tensor, *, all_of_them: bool) -> None:
        flat = value.permute(0, 2, 3, 1).flatten(1, 2)
        if all_of_them:
            self.news.copy_(flat)
        else:
            self.news.index_copy_(0, who, flat)

    def accept(self, place: Tensor, who: Tensor) -> None:
        first = self.first.index_select(0, who)
        old, new = first + self.old.index_select(0, place), first + self.new
        self.pixels.index_copy_(0, old.flatten(), self.pixels.index_select(0, new.flatten()))


class _Half:
    """A network that one thread asks about squares."""

    def __init__(self, net: fx.GraphModule) -> None:
        self.net = net
        self.nodes: list[fx.Node] = list(net.graph.nodes)
        self.modules = dict(net.named_modules())
        self.stores: dict[fx.Node, _Store] = {}
        self.asked_about = 0, 0
        self.convs = {node: conv for node in self.nodes if (conv := conv_of(node, self.modules)) is not None}

    def begin(self, plan: Plan, images: Tensor) -> None:
        """Take these images, for which `plan` was made."""
        maps: _Env = {}
        _Recording(self.net, maps).run(images)
        self.plan = plan
        self.stores = {node: _Store.of(maps[node], plan.windows[node], plan.stored[node]) for node in plan.read}

    def ask(self, proposals: Tensor, corners: Tensor, rows: Tensor | None) -> Tensor:
        """Logits of proposals.

        Args:
            proposals: all of them, `(N, H*W*C)`, channels last.
            corners: of the squares, `(n, 2)`.
            rows: which proposals to ask about, int64 `(n,)`; None for all.
        """
        count = len(corners)
        who = torch.arange(count) if rows is None else rows
        windows, values, stores = self.plan.windows, dict[fx.Node, Any](), self.stores
        place = self.plan.place(corners)
        self.asked = place, who, rows is None
        for node, window in windows.items():
            if node.op == "placeholder":
                pixels = window.rows.extent * window.columns.extent
                at = self.plan.stored[node].index_select(0, place).add_((who * pixels)[:, None])
                flat = proposals.view(len(proposals) * pixels, -1).index_select(0, at.flatten())
                value = flat.view(count, window.rows.size, window.columns.size, -1).permute(0, 3, 1, 2)
            elif (conv := self.convs.get(node)) is not None:
                value = _applied(conv, self._part(node.all_input_nodes[0], node))
            else:
                value = self._run(node, values)
            values[node] = value
            if (store := stores.get(node)) is not None:
                store.put(value, who, all_of_them=rows is None)
        logits: Tensor = self.plan.rest(*(self._part(node, None) for node in self.plan.given))
        return logits

    def _part(self, node: fx.Node, reader: fx.Node | None) -> Tensor:
        """What `reader` reads of a map, or all of it, of the proposals that are asked about."""
        store, part = self.stores[node], self.plan.parts[node, reader]
        place, who, all_of_them = self.asked
        first = store.first if all_of_them else store.first.index_select(0, who)
        at = self.plan.tables[node, reader].index_select(0, place).add_(first)
        flat = store.pixels.index_select(0, at.flatten())
        return flat.view(len(place), part.rows.size, part.columns.size, -1).permute(0, 3, 1, 2)

    def _run(self, node: fx.Node, values: _Env) -> Any:
        def read(before: fx.Node) -> Any:
            if (before, node) in self.plan.tables:
                return self._part(before, node)
            return values[before] if before in values else operator.attrgetter(str(before.target))(self.net)

        args, kwargs = fx.node.map_arg(node.args, read), fx.node.map_arg(node.kwargs, read)
        if node.op == "call_module":
            return self.modules[str(node.target)](*args, **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def accept(self, accepted: Tensor) -> None:
        """The last proposals of these rows, bool `(n,)` of those that were asked about, are what is known from now."""
        at = accepted.nonzero()[:, 0]
        if len(at):
            place, who, _ = self.asked
            place, who = place.index_select(0, at), who.index_select(0, at)
            for store in self.stores.values():
                store.accept(place, who)


class Local:
    """A network that is asked about squares, in as many threads as torch may use.

    Each thread has images of its own and computes all by itself. Most operators here are so short that several threads
    in one of them would mostly wait for each other.

    Args:
        net: its graph.
        count: is told how many images pass.
        least: multiplications of an image that windows have to save.
    """

    def __init__(self, net: fx.GraphModule, count: Callable[[int], None], least: float = 0.0) -> None:
        self.net, self.count, self.least = net, count, least
        self.plans: dict[int, Plan] = {}
        self.over = self.tried = False
        self.halves: list[_Half] = []
        self.threads = torch.get_num_threads()
        self.pool: ThreadPoolExecutor | None = None

    @classmethod
    def of(cls, victim: Victim) -> Self | None:
        """The network of `victim` in float32 on a CPU, where its layers are known."""
        module: nn.Module | None = victim.module
        count: Callable[[int], None] = _nobody
        if isinstance(module, Counted):
            count, module = module.count, module.module
        net = module.net if isinstance(module, Folded) else module
        predictor = victim.estimator.predictor if isinstance(victim.estimator, PredictorClassifier) else None
        if predictor is None or predictor.precision != "fp32" or predictor.finish or victim.device.type != "cpu":
            return None
        if not isinstance(net, fx.GraphModule) or overwrites(net):
            return None
        return cls(net, count, 0.0 if victim.by_module else LEAST)

    @property
    def ready(self) -> bool:
        """It can be asked."""
        return bool(self.halves)

    def compare(self, logits: Tensor, answers: Tensor) -> None:
        """Answer nothing more if the first logits are not those that the runtime gives."""
        self.tried = True
        spread = answers.amax(dim=1, keepdim=True) - answers.amin(dim=1, keepdim=True)
        if not bool(((logits - answers).abs() <= NEAR * spread).all()):
            self.halves, self.over = [], True

    def begin(self, images: Tensor, side: int) -> None:
        """Take these images, `(N, C, H, W)`, for those that proposals differ from in a square of `side` pixels.

        It is `ready` afterwards, if computing in windows pays.
        """
        self.halves, self.tried = [], False
        if self.over:
            return
        if side not in self.plans:
            maps: _Env = {}
            _Recording(self.net, maps).run(images[:1])
            self.plans[side] = plan(self.net, maps, side)
            self.count(1)
        made = self.plans[side]
        if made.share > PAYS or made.saved < self.least or made.saved * len(images) < TOGETHER:
            return
        if len(images) * made.numbers > MOST:
            return
        parts = torch.chunk(images, self.threads)
        self.ends = torch.tensor([len(part) for part in parts]).cumsum(0).tolist()
        self.halves = [_Half(self.net) for _ in parts]
        for half, part in zip(self.halves, parts, strict=True):
            half.begin(self.plans[side], part)
        self.count(len(images))

    def ask(self, proposals: Tensor, corners: Tensor, rows: Tensor | None) -> Tensor:
        """Logits of proposals.

        Args:
            proposals: all of them, `(N, H*W*C)`, channels last.
            corners: of the squares, `(n, 2)`.
            rows: which proposals to ask about, int64 `(n,)`, in order; None for all.
        """
        self.count(len(corners))
        jobs, begin, first = [], 0, 0
        for half, end in zip(self.halves, self.ends, strict=True):
            last = end if rows is None else int(torch.searchsorted(rows, end))
            if last > first:
                which = None if rows is None or last - first == end - begin else rows[first:last] - begin
                jobs.append((half, proposals[begin:end], corners[first:last], which))
            half.asked_about = first, last
            begin, first = end, last
        if len(jobs) == 1:
            return jobs[0][0].ask(*jobs[0][1:])
        if self.pool is None:
            self.pool = _pool(self.threads)
        return torch.cat(list(self.pool.map(lambda job: _asked(*job), jobs)))

    def accept(self, accepted: Tensor) -> None:
        """The last proposals of these rows, bool `(n,)` of those that were asked about, are what is known from now."""
        for half in self.halves:
            first, last = half.asked_about
            half.accept(accepted[first:last])


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose operators are not divided among others."""
    pool, all_there = ThreadPoolExecutor(threads, "square", torch.set_num_threads, (1,)), Barrier(threads)
    list(pool.map(lambda _: all_there.wait(), range(threads)))
    torch.set_num_threads(threads)  # what each has set for itself holds for threads to come, too
    return pool


@torch.no_grad()
def _asked(half: _Half, proposals: Tensor, corners: Tensor, rows: Tensor | None) -> Tensor:
    return half.ask(proposals, corners, rows)


class _Recording(fx.Interpreter):
    """Runs a graph and keeps what every node gives."""

    def __init__(self, net: fx.GraphModule, maps: _Env) -> None:
        super().__init__(net, garbage_collect_values=False)
        self.maps = maps

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.maps[n] = result
        return result


def _applied(conv: FrozenConv2d, part: Tensor) -> Tensor:
    weight, bias, _ = conv._kernel(part.dtype, part.device, False)
    return F.conv2d(part, weight, bias, conv.stride, 0, 1, conv.groups)
