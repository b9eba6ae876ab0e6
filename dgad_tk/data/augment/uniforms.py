"""The random numbers of one augmentation of one batch."""

from dataclasses import dataclass

from torch import Tensor

from dgad_tk.draws import Draws


@dataclass(frozen=True)
class Uniforms:
    """Uniform on [0, 1), of an image, an epoch and a seed: no other image of the batch changes them.

    Attributes:
        draws: of the run's seed.
        row: of AUGMENTS; each has its own numbers.
        index: dataset indices, int64 `(N,)`, on the images' device.
        epoch: from 0.
    """

    draws: Draws
    row: str
    index: Tensor
    epoch: int

    def __call__(self, purpose: str, size: int) -> Tensor:
        """`size` numbers for each image, float32 `(N, size)`."""
        return self.draws.uniform(f"augment-{self.row}-{purpose}", (size,), index=self.index, epoch=self.epoch)
