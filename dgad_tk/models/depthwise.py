"""Strided depthwise convolutions in bfloat16 on a CPU, whose gradient to the input torch computes ten times too slowly.

It took a quarter of MobileNetV2's outer step. Here it is a convolution with the kernel turned round, on a gradient with
zeros between its pixels: four times as many multiplications as are needed, in a tenth of the time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class QuickDepthwise(TorchFunctionMode):
    """While it is open, such convolutions are computed by `StridedDepthwise`. Everything else is as it was."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and len(args) == 7 and not kwargs and _is_meant(*args):
            x, weight, bias, stride, padding, *_ = args
            low = [None if each is None else each.to(torch.bfloat16) for each in (x, weight, bias)]
            return StridedDepthwise.apply(*low, tuple(stride), tuple(padding))
        return func(*args, **(kwargs or {}))


def _is_meant(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    if groups == 1 or x.device.type != "cpu" or x.dim() != 4 or not torch.is_grad_enabled():
        return False
    depthwise = weight.shape[1] == 1 and weight.shape[0] == groups == x.shape[1]
    # `same` and one number for both sides are torch.nn.functional's own ways; nn.Conv2d gives tuples.
    pairs = all(isinstance(each, tuple) and len(each) == 2 for each in (stride, padding, dilation))
    if not depthwise or not pairs or tuple(stride) == (1, 1) or tuple(dilation) != (1, 1):
        return False
    inside = all(edge < size for edge, size in zip(padding, weight.shape[2:], strict=True))
    low = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return inside and low and x.dtype in (torch.float32, torch.bfloat16)


class StridedDepthwise(torch.autograd.Function):
    """conv2d of `(N, C, H, W)` with a kernel `(C, 1, h, w)`, one for each channel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight), groups = gradients, ctx.saved_tensors, len(ctx.saved_tensors[1])
        stride, padding, sizes = ctx.stride, ctx.padding, weight.shape[2:]
        needed = ctx.needs_input_grad
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, x, weight, [groups], stride, padding, (1, 1), False, (0, 0), groups, (False, *needed[1:3])
        )
        of_x = None
        if needed[0]:
            # Height and width that the result would have with a stride of 1.
            dense = [side + 2 * edge - size + 1 for side, size, edge in zip(x.shape[2:], sizes, padding, strict=True)]
            apart = gradient.new_zeros(*gradient.shape[:2], *dense)
            apart[:, :, :: stride[0], :: stride[1]] = gradient
            around = [size - 1 - edge for size, edge in zip(sizes, padding, strict=True)]
            of_x = F.conv2d(apart, weight.flip(2, 3), padding=around, groups=groups)
        return of_x, of_weight, of_bias, None, None
