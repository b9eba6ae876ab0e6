"""CUDA graphs of a frozen network's passes: recorded once for each shape of images, then replayed by one call each.

An attack runs the same kernels over the same memory again and again. A small network, or a small batch, is done with a
kernel before Python has started the next; a replayed graph starts them all at once. The kernels are the same ones.

Nothing here runs without a card. Where a graph cannot be recorded, the network goes on as before, and says so once.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Net = Callable[[Tensor], Tensor]
Key = tuple[object, ...]

MOST = 4
"""Shapes that are recorded: each holds the memory of a forward and a backward pass."""


class Recorded:
    """`net`, whose passes with a gradient to the images are replayed from the second of their shape on.

    The weights stay where they are in memory: `FrozenConv2d.refreshed(in_place=True)` writes new ones into their place.

    Args:
        net: frozen, in eval mode, from images on a card to logits.
        note: gets a sentence if graphs cannot be recorded here.
        record: makes the replaying function of a network and sample images.
        on_card: whether images are where graphs can be recorded.
    """

    def __init__(
        self,
        net: Net,
        note: Callable[[str], None] = lambda line: None,
        *,
        record: Callable[[Net, Tensor], Net] | None = None,
        on_card: Callable[[Tensor], bool] = lambda x: x.is_cuda,
    ) -> None:
        self.net, self.note, self.record, self.on_card = net, note, record or record_on_card, on_card
        self.graphs: dict[Key, Net] = {}
        self.seen: Counter[Key] = Counter()
        self.waiting: set[Key] = set()  # replayed forward, and not yet backward

    def __call__(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad and self.on_card(x)):
            return self.net(x)
        low = torch.is_autocast_enabled(x.device.type)
        key = (tuple(x.shape), x.stride(), x.dtype, torch.get_autocast_dtype(x.device.type) if low else None)
        graph = self.graphs.get(key) or self._recorded(key, x)
        # A second forward pass would overwrite what the backward pass of the first one needs.
        if graph is None or key in self.waiting:
            return self.net(x)
        self.waiting.add(key)
        logits = graph(x).clone()  # the next replay writes to the same memory
        logits.register_hook(lambda gradient: self.waiting.discard(key))  # type: ignore[no-untyped-call]
        return logits

    def _recorded(self, key: Key, x: Tensor) -> Net | None:
        """The graph of images like these; None at the first ones, and where there is none to be had."""
        self.seen[key] += 1
        if self.seen[key] != 2 or len(self.graphs) >= MOST:
            return None
        try:
            self.graphs[key] = self.record(self.net, x.detach().clone().requires_grad_())
        except (RuntimeError, AssertionError) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.note(f"cuda_graph: images {tuple(x.shape)} are attacked without a graph: {why}")
            return None
        return self.graphs[key]


def record_on_card(net: Net, sample: Tensor) -> Net:
    """The function that replays both passes of `net` on images like `sample`, which then belongs to it."""
    # A function, not a module: weights are constants, and there is no gradient to them.
    made: Any = torch.cuda.make_graphed_callables(lambda x: net(x), (sample,))
    replay: Net = made
    return replay
