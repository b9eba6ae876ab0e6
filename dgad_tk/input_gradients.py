"""Gradients to a convolution's input on a CPU, in cheaper ways than torch's own.

- Depthwise and strided 1x1 kernels: a convolution with the kernel turned round. Torch's own is half as fast there, and
  in bfloat16 with a stride many times slower.
- A first layer: its three channels would fill three of the sixteen lanes that the CPU computes at once, so that the
  gradient is found for 2x2 pixels in one go, in 0.6 of the time.
- A strided 1x1 shortcut beside another convolution: it reaches one pixel in four, and is added there instead of being
  set apart by zeros in a map of its own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LANES = 16
"""Channels that a CPU computes at once, in float32 with 512-bit registers."""

_Pair = tuple[int, int]
_Gradients = tuple[Tensor | None, ...]


def turns_round(shape: tuple[int, ...], stride: _Pair, padding: _Pair, dilation: _Pair, groups: int) -> bool:
    """Whether `TurnedRound` is faster, for a kernel `(O, I/g, h, w)`.

    With a stride, the gradient is set apart by zeros. That multiplies the work by the square of the stride, which is
    nothing for depthwise kernels; a 1x1 kernel does its work before.
    """
    depthwise = groups > 1 and shape[1] == 1
    strided_point = shape[2:] == (1, 1) and stride != (1, 1)
    return dilation == (1, 1) and _fits(padding, shape[2:]) and (depthwise or strided_point)


def block_side(shape: tuple[int, ...], stride: _Pair, padding: _Pair, dilation: _Pair, groups: int) -> int:
    """How many pixels wide and high the blocks of `Blocks` are best, for a kernel `(O, I/g, h, w)`; 1 for none."""
    plain = stride == dilation == (1, 1) and groups == 1 and _fits(padding, shape[2:]) and shape[2:] != (1, 1)
    return max(side for side in (1, 2, 4) if side**2 * shape[1] <= LANES or side == 1) if plain else 1


def _fits(padding: _Pair, sizes: tuple[int, ...]) -> bool:
    return all(edge < size for edge, size in zip(padding, sizes, strict=True))


def turned_round(weight: Tensor, groups: int) -> Tensor:
    """`(O, I/g, h, w)` as the kernel of the gradient to the input, `(I, O/g, h, w)`."""
    out, per_group, height, width = weight.shape
    grouped = weight.view(groups, out // groups, per_group, height, width).transpose(1, 2).flip(3, 4)
    turned = grouped.reshape(groups * per_group, out // groups, height, width)
    return turned.contiguous(memory_format=torch.channels_last)


def block_kernel(weight: Tensor, side: int) -> Tensor:
    """`(O, I, h, w)` as the kernel of the gradient to `side` x `side` pixels, `(side * side * I, O, h', w')`.

    Each pixel's is the turned kernel, moved to where the pixel is, among zeros: h' is h + side - 1.
    """
    turned = turned_round(weight, groups=1)
    channels, out, height, width = turned.shape
    kernel = turned.new_zeros(side, side, channels, out, height + side - 1, width + side - 1)
    for row in range(side):
        for column in range(side):
            kernel[row, column, :, :, row : row + height, column : column + width] = turned
    return kernel.flatten(0, 2).contiguous(memory_format=torch.channels_last)


class TurnedRound(torch.autograd.Function):
    """conv2d whose backward pass is a convolution too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        turned: Tensor,
        stride: _Pair,
        padding: _Pair,
        groups: int,
    ) -> Tensor:
        ctx.sides, ctx.kernel = x.shape[2:], (weight.shape[2:], turned, stride, padding, groups)
        return F.conv2d(x, weight, bias, stride, padding, groups=groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> _Gradients:
        sizes, turned, stride, padding, groups = ctx.kernel
        # What a stride of 1 would have given, and how much the turned kernel reaches over its edges.
        dense = [side + 2 * edge - size + 1 for side, size, edge in zip(ctx.sides, sizes, padding, strict=True)]
        around = _around(sizes, padding)
        if sizes == (1, 1):
            found = _set_apart(F.conv2d(gradients[0], turned, groups=groups), stride, dense)
        else:
            found = F.conv2d(_set_apart(gradients[0], stride, dense), turned, padding=around, groups=groups)
        return found, *[None] * 6


class Blocks(torch.autograd.Function):
    """conv2d of stride 1 whose backward pass gives `side` x `side` pixels a step. The image's sides are multiples."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor, padding: _Pair, side: int
    ) -> Tensor:
        ctx.shape, ctx.kernel = x.shape, (kernel, _around(weight.shape[2:], padding), side)
        return F.conv2d(x, weight, bias, 1, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> _Gradients:
        kernel, around, side = ctx.kernel
        found = F.conv2d(gradients[0], kernel, stride=side, padding=around)  # (N, row column channel, H', W')
        count, channels, height, width = ctx.shape
        parts = found.view(count, side, side, channels, height // side, width // side).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(ctx.shape), *[None] * 5


class Branches(torch.autograd.Function):
    """Two convolutions of the same images, the second of them 1x1 with a stride."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        manner: tuple[_Pair, _Pair, _Pair, int],
        point: Tensor,
        shift: Tensor | None,
        turned: Tensor,
        stride: _Pair,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        ctx.manner, ctx.point = manner, (turned, stride)
        return F.conv2d(x, weight, bias, *manner), F.conv2d(x, point, shift, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> _Gradients:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.manner
        wanted = (True, False, False)
        found: Tensor = torch.ops.aten.convolution_backward(
            gradients[0], x, weight, None, stride, padding, dilation, False, (0, 0), groups, wanted
        )[0]
        turned, apart = ctx.point
        found[:, :, :: apart[0], :: apart[1]] += F.conv2d(gradients[1], turned)
        return found, *[None] * 7


def _around(sizes: tuple[int, ...], padding: _Pair) -> list[int]:
    """How much a turned kernel reaches over the edges of the gradient."""
    return [size - 1 - edge for size, edge in zip(sizes, padding, strict=True)]


def _set_apart(gradient: Tensor, stride: _Pair, dense: list[int]) -> Tensor:
    """`(N, C, h, w)` at every `stride`-th place of `(N, C, *dense)`, zeros between."""
    if stride == (1, 1):
        return gradient
    shape = (*gradient.shape[:2], *dense)
    spread = torch.zeros(shape, dtype=gradient.dtype, device=gradient.device).to(memory_format=torch.channels_last)
    height, width = gradient.shape[2:]
    spread[:, :, :: stride[0], :: stride[1]][:, :, :height, :width] = gradient
    return spread
