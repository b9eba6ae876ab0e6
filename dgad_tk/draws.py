"""Random draws that belong to an image, whenever and wherever it is used.

Every draw is a function of (seed, purpose, epoch, dataset index, step) alone: neither global state, nor the order of
calls, nor the rest of the batch changes it. So a resumed run, a run on several processes and a run with another batch
size see the same noise on the same image.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011),
vectorised over a batch on whatever device the images live on. int64 arithmetic wraps, so the low 64 bits of a product
are exact and masking gives the 32-bit words.
"""

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four int64 tensors of 32-bit words to four tensors of random words, of the broadcast shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # Shifting a negative int64 repeats its sign bit; the mask removes the copies.
        c0, c1, c2, c3 = (
            ((right >> 32) & _WORD) ^ c1 ^ k0,
            right & _WORD,
            ((left >> 32) & _WORD) ^ c3 ^ k1,
            left & _WORD,
        )
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Draws:
    """All random numbers of one seed.

    Args:
        seed: any integer; its low 32 bits are used.
    """

    seed: int

    def words(self, purpose: str, shape: tuple[int, ...], *, index: Tensor, epoch: int = 0, step: int = 0) -> Tensor:
        """Random 32-bit words as int64, `(len(index), *shape)`, on `index`'s device.

        Args:
            purpose: what they are for; each purpose has its own numbers.
            index: dataset indices, int64 `(N,)`.
            epoch: 0 to 2^32 - 1.
            step: tells several draws for one image in one epoch apart.
        """
        size = math.prod(shape)
        blocks = torch.arange(-(-size // 4), device=index.device)
        index = index.to(torch.int64)[:, None]
        counter = (
            blocks[None, :],
            index & _WORD,
            torch.full_like(index, epoch),
            torch.full_like(index, step),
        )
        key = (self.seed & _WORD, zlib.crc32(purpose.encode()))
        words = torch.stack([word.expand(len(index), len(blocks)) for word in philox4x32(counter, key)], dim=2)
        return words.reshape(len(index), 4 * len(blocks))[:, :size].reshape(len(index), *shape)

    def uniform(self, purpose: str, shape: tuple[int, ...], *, index: Tensor, epoch: int = 0, step: int = 0) -> Tensor:
        """Uniform on [0, 1), `(len(index), *shape)`. They have 24 random bits, which float32 holds exactly."""
        words = self.words(purpose, shape, index=index, epoch=epoch, step=step)
        return (words >> 8).float() * 2.0**-24

    def normal(self, purpose: str, shape: tuple[int, ...], *, index: Tensor, epoch: int = 0, step: int = 0) -> Tensor:
        """Standard normal, `(len(index), *shape)`, by Box and Muller's transform of pairs of uniforms."""
        size = math.prod(shape)
        pairs = -(-size // 2)
        u = self.uniform(purpose, (2, pairs), index=index, epoch=epoch, step=step)
        radius = torch.sqrt(-2 * torch.log1p(-u[:, 0]))  # 1 - u is in (0, 1], so the logarithm is finite
        angle = 2 * math.pi * u[:, 1]
        both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        return both[:, :size].reshape(len(index), *shape)

    def integers(
        self, purpose: str, shape: tuple[int, ...], *, low: int, high: int, index: Tensor, epoch: int = 0, step: int = 0
    ) -> Tensor:
        """Integers in [low, high), int64 `(len(index), *shape)`; the bias is below (high - low) / 2^32."""
        words = self.words(purpose, shape, index=index, epoch=epoch, step=step)
        return low + ((words * (high - low)) >> 32)

    def permutation(self, purpose: str, n: int, *, epoch: int = 0) -> Tensor:
        """A permutation of 0..n-1, int64 `(n,)`, on the CPU."""
        index = torch.arange(n)
        word = self.words(purpose, (2,), index=index, epoch=epoch)
        # Keys of 62 random bits are hardly ever equal, and a stable sort settles that too.
        return torch.argsort((word[:, 0] << 30) | (word[:, 1] >> 2), stable=True)
