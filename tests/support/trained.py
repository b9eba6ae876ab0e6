"""Networks trained for a moment on digits whose weights are the same on every machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from dgad_tk.data import load_dataset

Net = TypeVar("Net", bound=nn.Module)
IMAGES = 640
"""Of the training split; the networks see no others."""


def trained_on_digits(
    build: Callable[[], Net],
    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    *,
    steps: int,
    batch: int,
    attack: Callable[[Net, Tensor, Tensor], Tensor] = lambda net, x, y: x,
) -> Net:
    """`build()` after `steps` of SGD or the like on the first images, in eval mode, float32.

    Float32 would give every machine a network of its own: draws and sums differ in the last bit from one vector unit
    to the next. Here weights are drawn and trained in float64, where two machines differ by 1e-12 of a weight (a part
    in 10^13 put in at the start had not grown after 60 steps), and rounded to the eight bits of bfloat16, which swallow
    that: of the 78,000 weights of a ResNet-8 one lies near enough to a border with a chance of 1e-5.

    Args:
        attack: makes the images to learn from of a network, images and labels.
    """
    train = load_dataset("digits").train
    x, y = torch.from_numpy(train.take(slice(0, IMAGES)) / 255.0), torch.from_numpy(train.labels[:IMAGES])
    with torch.random.fork_rng(), _double():
        torch.manual_seed(0)
        net = build()
    updates = optimizer(net.parameters())
    for step in range(steps):
        first = batch * step % IMAGES
        images, labels = x[first : first + batch], y[first : first + batch]
        images = attack(net, images, labels)
        nn.functional.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
        updates.step()
        updates.zero_grad()
    return net.bfloat16().float().eval().requires_grad_(False)


@contextmanager
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
