"""A convolution whose weights do not change for a while, and which computes the gradient to its input alone.

What makes it fast (benchmarks/train_step.py):

- Under autocast the weights are cast once, not at every call.
- On a CPU the gradient of depthwise and of strided 1x1 kernels is computed as a convolution with the kernel turned
  round. torch's own gradient of MobileNetV2 takes a tenth more time in float32, and twice the time in bfloat16.
- On a CPU images are laid out channels-last, except float32 maps of 512 channels that are at most 4 pixels wide, for
  which channels-last takes 1.6 times as long.
- A ReLU behind a convolution overwrites the convolution's result, which saves a tenth of a forward pass of MobileNetV2.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

NARROW, HEAVY = 4, 2**20
"""Maps at most this wide are not laid out channels-last if the kernel has at least this number of weights."""

_Pair = tuple[int, int]
_Kernel = tuple[Tensor, Tensor | None, Tensor | None]
"""Weight, bias, and the turned weight where the gradient is computed with it."""


class FrozenConv2d(nn.Module):
    """`conv` without gradients to its weights.

    Args:
        conv: its parameters are shared, not copied. Call `refreshed` when they have changed.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.groups = conv.weight, conv.bias, conv.groups
        self.stride, self.padding, self.dilation = _pair(conv.stride), _pair(conv.padding), _pair(conv.dilation)
        self.turns = self._turns()
        self._kernels: dict[tuple[torch.dtype, torch.device, bool], _Kernel] = {}

    def _turns(self) -> bool:
        """Whether `TurnedRound` is faster on a CPU.

        A stride puts zeros between the gradient's pixels and so multiplies the work by its square. Depthwise kernels
        have little work to multiply; 1x1 kernels are applied before the zeros come in.
        """
        sizes = self.weight.shape[2:]
        depthwise = self.groups > 1 and self.weight.shape[1] == 1
        strided_point = sizes == (1, 1) and self.stride != (1, 1)
        inside = all(edge < size for edge, size in zip(self.padding, sizes, strict=True))
        return self.dilation == (1, 1) and inside and (depthwise or strided_point)

    def refreshed(self, *, in_place: bool = False) -> None:
        """Drop the cached kernels after the weights have changed, or put the new ones in their place in memory."""
        if not in_place:
            self._kernels.clear()
            return
        for key, kernel in self._kernels.items():
            for old, new in zip(kernel, self._made(*key), strict=True):
                if old is not None and new is not None:
                    old.copy_(new)

    def forward(self, x: Tensor) -> Tensor:
        low = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if low else x.dtype
        narrow = self.weight.numel() >= HEAVY and x.shape[3] <= NARROW
        if narrow := narrow and dtype == torch.float32 and x.device.type == "cpu":
            x = x.contiguous()
        weight, bias, turned = self._kernel(dtype, x.device, narrow)
        if turned is None:
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        y: Tensor = TurnedRound.apply(x.to(dtype), weight, bias, turned, self.stride, self.padding, self.groups)
        return y

    def _kernel(self, dtype: torch.dtype, device: torch.device, narrow: bool) -> _Kernel:
        """The weights, cast and laid out; cached until `refreshed`."""
        if (known := self._kernels.get((dtype, device, narrow))) is None:
            known = self._kernels[dtype, device, narrow] = self._made(dtype, device, narrow)
        return known

    def _made(self, dtype: torch.dtype, device: torch.device, narrow: bool) -> _Kernel:
        layout = torch.contiguous_format if narrow else torch.channels_last
        weight = self.weight.detach().to(dtype).contiguous(memory_format=layout)
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        turned = turned_round(weight, self.groups) if device.type == "cpu" and self.turns else None
        return weight, bias, turned


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
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sizes, turned, stride, padding, groups = ctx.kernel
        # Height and width that the result would have with a stride of 1.
        dense = [side + 2 * edge - size + 1 for side, size, edge in zip(ctx.sides, sizes, padding, strict=True)]
        if sizes == (1, 1):
            found = _set_apart(F.conv2d(gradients[0], turned, groups=groups), stride, dense)
        else:
            # How far the turned kernel reaches over the edges.
            around = [size - 1 - edge for size, edge in zip(sizes, padding, strict=True)]
            found = F.conv2d(_set_apart(gradients[0], stride, dense), turned, padding=around, groups=groups)
        return found, *[None] * 6


def turned_round(weight: Tensor, groups: int) -> Tensor:
    """The kernel `(O, I/g, h, w)` of a convolution to that of its gradient to the input, `(I, O/g, h, w)`."""
    out, per_group, height, width = weight.shape
    grouped = weight.view(groups, out // groups, per_group, height, width).transpose(1, 2).flip(3, 4)
    turned = grouped.reshape(groups * per_group, out // groups, height, width)
    return turned.contiguous(memory_format=torch.channels_last)


def _set_apart(gradient: Tensor, stride: _Pair, dense: list[int]) -> Tensor:
    """The gradient `(N, C, h, w)` at every `stride`-th place of `(N, C, *dense)`, with zeros between."""
    if stride == (1, 1):
        return gradient
    shape = (*gradient.shape[:2], *dense)
    spread = torch.zeros(shape, dtype=gradient.dtype, device=gradient.device).to(memory_format=torch.channels_last)
    height, width = gradient.shape[2:]
    spread[:, :, :: stride[0], :: stride[1]][:, :, :height, :width] = gradient
    return spread


def _pair(numbers: object) -> _Pair:
    assert isinstance(numbers, tuple)
    return int(numbers[0]), int(numbers[1])


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is of one of these classes itself and calls nothing else.

    torch's parametrisations, such as weight_norm, make classes of their own; hooks change what a module is given or
    gives.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) in kinds and not hooked


def rectify_in_place(traced: fx.GraphModule) -> None:
    """Let each ReLU that alone reads a frozen convolution's result overwrite it."""
    modules = dict(traced.named_modules())

    def is_call_of(node: object, kind: type[nn.Module]) -> bool:
        return isinstance(node, fx.Node) and node.op == "call_module" and is_plain(modules[str(node.target)], kind)

    for node in list(traced.graph.nodes):
        is_relu = node.target in (F.relu, torch.relu) or is_call_of(node, nn.ReLU)
        if is_relu and node.args and is_call_of(conv := node.args[0], FrozenConv2d) and len(conv.users) == 1:
            with traced.graph.inserting_before(node):
                in_place = traced.graph.call_function(F.relu, (conv,), {"inplace": True})
            node.replace_all_uses_with(in_place)
            traced.graph.erase_node(node)
