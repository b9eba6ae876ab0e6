"""A clock that only goes on when it is told to, and a model that tells it."""

from torch import Tensor, nn
from victims import TwoClassLinear


class Watch:
    """A clock that only goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def __deepcopy__(self, memo: object) -> "Watch":
        """A model's folded copy tells the same clock."""
        return self


class Slow(nn.Module):
    """A linear model whose passes take 0.5 s a batch and 0.25 s an image, on the watch."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.net, self.watch = TwoClassLinear(), watch

    def forward(self, x: Tensor) -> Tensor:
        self.watch.now += 0.5 + 0.25 * len(x)
        logits: Tensor = self.net(x)
        return logits
