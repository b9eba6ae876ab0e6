"""A convolution whose weights stay as they are for a while: only the gradient to its input is ever asked for.

What pays (benchmarks/train_step.py): the weights are cast for autocast once, not at every call, and a ReLU works in
place. On a CPU also: images are laid out channels-last, except float32 maps 4 pixels wide of 512 channels, where that
takes 1.6 times as long. And the input gradient of depthwise and of strided 1x1 kernels is a convolution with the
kernel turned round: torch's own is half as fast there, and in bfloat16 with a stride many times slower.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NARROW = 4
"""Width of the maps that are better not laid out channels-last, under a kernel of so many weights."""
HEAVY = 2**20

_Kernel = tuple[Tensor, Tensor | None, Tensor | None]
"""Weight, bias, and the weight turned round or None where the backward pass is torch's own."""


class FrozenConv2d(nn.Module):
    """`conv`, and a ReLU behind it if `relu`, without gradients to its weights.

    Args:
        conv: its parameters are taken over, not copied. `refreshed` has to be called when they change.
        relu: apply max(0, ·) to the result.
    """

    def __init__(self, conv: nn.Conv2d, *, relu: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.relu = conv.weight, conv.bias, relu
        self.stride, self.padding, self.dilation = _pair(conv.stride), _pair(conv.padding), _pair(conv.dilation)
        self.groups = conv.groups
        self.heavy = self.weight.numel() >= HEAVY
        self._kernels: dict[tuple[torch.dtype, torch.device, bool], _Kernel] = {}

    def refreshed(self) -> None:
        """The weights have changed."""
        self._kernels.clear()

    def forward(self, x: Tensor) -> Tensor:
        low = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if low else x.dtype
        narrow = self.heavy and x.shape[3] <= NARROW and dtype == torch.float32 and x.device.type == "cpu"
        weight, bias, turned = self._kernels.get((dtype, x.device, narrow)) or self._kernel(dtype, x.device, narrow)
        if narrow:
            x = x.contiguous()
        if turned is not None:
            y: Tensor = _TurnedRound.apply(x.to(dtype), weight, bias, turned, self.stride, self.padding, self.groups)
        else:
            y = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return y.relu_() if self.relu else y

    def _kernel(self, dtype: torch.dtype, device: torch.device, narrow: bool) -> "_Kernel":
        layout = torch.contiguous_format if narrow else torch.channels_last
        weight = self.weight.detach().to(dtype).contiguous(memory_format=layout)
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        turned = _turned(weight, self.groups) if device.type == "cpu" and self._turns_round(weight) else None
        self._kernels[dtype, device, narrow] = weight, bias, turned
        return weight, bias, turned

    def _turns_round(self, weight: Tensor) -> bool:
        """Whether the turned kernel is faster.

        With a stride, the gradient is set apart by zeros. That multiplies the work by the square of the stride, which
        is nothing for depthwise kernels; a 1x1 kernel does its work before.
        """
        depthwise = self.groups > 1 and weight.shape[1] == 1
        strided_point = weight.shape[2:] == (1, 1) and self.stride != (1, 1)
        return self.dilation == (1, 1) and _fits(self.padding, weight) and (depthwise or strided_point)


class _TurnedRound(torch.autograd.Function):
    """conv2d whose backward pass is a convolution too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        turned: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
        groups: int,
    ) -> Tensor:
        ctx.sides, ctx.kernel = x.shape[2:], (weight.shape[2:], turned, stride, padding, groups)
        return F.conv2d(x, weight, bias, stride, padding, groups=groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sizes, turned, stride, padding, groups = ctx.kernel
        # What a stride of 1 would have given, and how much the turned kernel reaches over its edges.
        dense = [side + 2 * edge - size + 1 for side, size, edge in zip(ctx.sides, sizes, padding, strict=True)]
        around = [size - 1 - edge for size, edge in zip(sizes, padding, strict=True)]
        if sizes == (1, 1):
            found = _set_apart(F.conv2d(gradients[0], turned, groups=groups), stride, dense)
        else:
            found = F.conv2d(_set_apart(gradients[0], stride, dense), turned, padding=around, groups=groups)
        return found, *[None] * 6


def _turned(weight: Tensor, groups: int) -> Tensor:
    """`(O, I/g, h, w)` as the kernel of the gradient to the input, `(I, O/g, h, w)`."""
    out, per_group, height, width = weight.shape
    grouped = weight.view(groups, out // groups, per_group, height, width).transpose(1, 2).flip(3, 4)
    turned = grouped.reshape(groups * per_group, out // groups, height, width)
    return turned.contiguous(memory_format=torch.channels_last)


def _set_apart(gradient: Tensor, stride: tuple[int, int], dense: list[int]) -> Tensor:
    """`(N, C, h, w)` at every `stride`-th place of `(N, C, *dense)`, zeros between."""
    if stride == (1, 1):
        return gradient
    shape = (*gradient.shape[:2], *dense)
    spread = torch.zeros(shape, dtype=gradient.dtype, device=gradient.device).to(memory_format=torch.channels_last)
    height, width = gradient.shape[2:]
    spread[:, :, :: stride[0], :: stride[1]][:, :, :height, :width] = gradient
    return spread


def _fits(padding: tuple[int, int], weight: Tensor) -> bool:
    return all(edge < size for edge, size in zip(padding, weight.shape[2:], strict=True))


def _pair(numbers: object) -> tuple[int, int]:
    assert isinstance(numbers, tuple)
    return int(numbers[0]), int(numbers[1])


def can_freeze(conv: nn.Module) -> bool:
    """Whether a module is a convolution that `FrozenConv2d` covers: zero padding, given in numbers."""
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
