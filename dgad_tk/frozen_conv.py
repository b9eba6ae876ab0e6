"""A convolution whose weights stay as they are for a while: only the gradient to its input is ever asked for.

What pays (benchmarks/train_step.py): the weights are cast for autocast once, not at every call, and what is added to
the result and a ReLU work in place. On a CPU also: images are laid out channels-last, except float32 maps 4 pixels wide
of 512 channels, where that takes 1.6 times as long. Where no gradient is asked for, addition and ReLU are part of the
convolution. Input gradients that are found in another way than torch's are in `dgad_tk.input_gradients`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgad_tk.input_gradients import Blocks, Branches, TurnedRound, block_kernel, block_side, turned_round, turns_round

NARROW = 4
"""Width of the maps that are better not laid out channels-last, under a kernel of so many weights."""
HEAVY = 2**20

_Kernel = tuple[Tensor, Tensor | None, Tensor | None]
"""Weight, bias, and the weight for the gradient, or None where that is torch's own."""


class FrozenConv2d(nn.Module):
    """`conv`, then a sum if there is something to add, then a ReLU if `relu`, without gradients to its weights.

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
        shape = tuple(self.weight.shape)
        self.turns = turns_round(shape, self.stride, self.padding, self.dilation, self.groups)
        self.block = block_side(shape, self.stride, self.padding, self.dilation, self.groups)
        self._kernels: dict[tuple[torch.dtype, torch.device, bool], _Kernel] = {}

    def refreshed(self) -> None:
        """The weights have changed."""
        self._kernels.clear()

    def forward(self, x: Tensor, added: Tensor | float | None = None) -> Tensor:
        """The convolution of `x`, plus `added` as `+` would have it, through the ReLU."""
        dtype, narrow = self._manner(x)
        if dtype == torch.float32 and not narrow and self._at_once(x, added):
            return self._whole(x, added)
        y = self._convolved(x, dtype, narrow)
        if isinstance(added, Tensor) and added.shape == y.shape and added.dtype == y.dtype:
            y = y.add_(added)
        elif added is not None:
            y = y + added
        return y.relu_() if self.relu else y

    def _manner(self, x: Tensor) -> tuple[torch.dtype, bool]:
        """What to compute in, and whether on maps that are laid out as torch does by default."""
        low = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if low else x.dtype
        return dtype, self.heavy and x.shape[3] <= NARROW and dtype == torch.float32 and x.device.type == "cpu"

    def _whole(self, x: Tensor, added: Any) -> Tensor:
        """Everything in one pass over the result, by oneDNN. It has no gradient."""
        weight, bias, _ = self.kernel(torch.float32, x.device)
        rest: tuple[Any, ...] = (weight, bias, self.padding, self.stride, self.dilation, self.groups)
        if added is None:
            y: Tensor = torch.ops.mkldnn._convolution_pointwise(x, *rest, "relu" if self.relu else "none", [], "")
        else:
            after = "relu" if self.relu else None
            y = torch.ops.mkldnn._convolution_pointwise.binary(x, added, *rest, "add", 1.0, after, [], "")
        return y

    def _at_once(self, x: Tensor, added: Any) -> bool:
        """Whether oneDNN may add and rectify in the convolution itself: it fits, and no gradient is asked for."""
        available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        if x.device.type != "cpu" or not available or x.numel() == 0:
            return False
        if added is None:
            return not (x.requires_grad and torch.is_grad_enabled())
        if not isinstance(added, Tensor) or added.shape != (len(x), len(self.weight), *self._sizes(x)):
            return False
        alike = added.dtype == torch.float32 and added.device == x.device
        apart = not (torch.is_grad_enabled() and (x.requires_grad or added.requires_grad))
        return alike and apart and added.is_contiguous(memory_format=torch.channels_last)

    def _sizes(self, x: Tensor) -> tuple[int, ...]:
        each = zip(x.shape[2:], self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        return tuple((side + 2 * edge - gap * (size - 1) - 1) // step + 1 for side, size, step, edge, gap in each)

    def _convolved(self, x: Tensor, dtype: torch.dtype, narrow: bool) -> Tensor:
        weight, bias, other = self.kernel(dtype, x.device, narrow)
        if narrow:
            x = x.contiguous()
        if other is not None and self.turns:
            y: Tensor = TurnedRound.apply(x.to(dtype), weight, bias, other, self.stride, self.padding, self.groups)
            return y
        if other is not None and x.requires_grad and all(side % self.block == 0 for side in x.shape[2:]):
            y = Blocks.apply(x.to(dtype), weight, bias, other, self.padding, self.block)
            return y
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def kernel(self, dtype: torch.dtype, device: torch.device, narrow: bool = False) -> _Kernel:
        """Weight, bias and the weight for the gradient, cast and laid out when first asked for."""
        known = self._kernels.get((dtype, device, narrow))
        if known is not None:
            return known
        layout = torch.contiguous_format if narrow else torch.channels_last
        weight = self.weight.detach().to(dtype).contiguous(memory_format=layout)
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        other = None
        if device.type == "cpu" and self.turns:
            other = turned_round(weight, self.groups)
        elif device.type == "cpu" and self.block > 1:
            other = block_kernel(weight, self.block)
        self._kernels[dtype, device, narrow] = weight, bias, other
        return weight, bias, other


def branches(main: FrozenConv2d, shortcut: FrozenConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both convolutions of `x`, where `can_branch` says so: on a CPU they find one gradient together."""
    dtype, narrow = main._manner(x)
    if x.device.type != "cpu" or narrow or not (torch.is_grad_enabled() and x.requires_grad):
        return main(x), shortcut(x)
    (weight, bias, _), (point, shift, turned) = main.kernel(dtype, x.device), shortcut.kernel(dtype, x.device)
    manner = (main.stride, main.padding, main.dilation, main.groups)
    y, z = Branches.apply(x.to(dtype), weight, bias, manner, point, shift, turned, shortcut.stride)
    return y.relu_() if main.relu else y, z.relu_() if shortcut.relu else z


def can_branch(main: FrozenConv2d, shortcut: FrozenConv2d) -> bool:
    """Whether `shortcut` is a strided 1x1 convolution, and the gradient of `main` torch's own."""
    point = tuple(shortcut.weight.shape[2:]) == (1, 1) and shortcut.turns and shortcut.groups == 1
    return point and not main.turns and main.block == 1


def _pair(numbers: object) -> tuple[int, int]:
    assert isinstance(numbers, tuple)
    return int(numbers[0]), int(numbers[1])


def can_freeze(conv: nn.Module) -> bool:
    """Whether a module is a convolution that `FrozenConv2d` covers: zero padding, given in numbers."""
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
