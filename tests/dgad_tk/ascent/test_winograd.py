"""3x3 convolutions by fewer multiplications, against torch's own in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgad_tk.ascent import winograd
from dgad_tk.ascent.frozen_conv import FrozenConv2d, Minimal

pytestmark = pytest.mark.portable


@pytest.mark.parametrize("shape", [(8, 4, 4), (3, 8, 8), (2, 8, 12)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_a_convolution(shape: tuple[int, int, int], bias: bool) -> None:
    count, height, width = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 160, 3, padding=1, bias=bias).double()
    frozen = FrozenConv2d(conv)
    x = torch.randn(count, 128, height, width, dtype=torch.float64, requires_grad=True)
    kernels = winograd.transformed(conv.weight.detach())
    y = winograd.convolved(x.detach(), kernels, None if conv.bias is None else conv.bias.detach())
    torch.testing.assert_close(y, conv(x).detach(), rtol=0, atol=1e-12)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y = Minimal.apply(x, frozen.bias, frozen)
    weights = torch.randn_like(y)
    (found,) = torch.autograd.grad((F.relu(y, inplace=True) * weights).sum(), x)
    (expected,) = torch.autograd.grad((conv(x).relu() * weights).sum(), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_in_float32_the_error_is_a_few_roundings() -> None:
    """Of sums of 1,152 products: about 1e-6 of the largest result by torch, 3e-6 this way."""
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 128, 3, padding=1)
    x = torch.rand(4, 128, 8, 8)
    frozen = FrozenConv2d(conv)
    with torch.no_grad():
        exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double() if conv.bias is not None else None, 1, 1)
        error = (frozen(x) - exact).abs().max() / exact.abs().max()
    assert 0 < error < 2e-5
    assert frozen._transformed


def test_new_weights_are_taken_over_when_it_is_told_of_them() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 128, 3, padding=1)
    frozen, x = FrozenConv2d(conv), torch.rand(8, 128, 4, 4)
    with torch.no_grad():
        frozen(x)
        conv.weight.mul_(-1)
        frozen.refreshed()
        torch.testing.assert_close(frozen(x), conv(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv2d(64, 128, 3, padding=1), (8, 64, 8, 8)),
        (nn.Conv2d(128, 128, 3, padding=1, stride=2), (8, 128, 8, 8)),
        (nn.Conv2d(128, 128, 3, padding=2), (8, 128, 8, 8)),
        (nn.Conv2d(128, 128, 3, padding=1, groups=2), (8, 128, 8, 8)),
        (nn.Conv2d(128, 128, 1), (8, 128, 8, 8)),
        (nn.Conv2d(128, 128, 3, padding=1), (8, 128, 7, 8)),
        (nn.Conv2d(128, 128, 3, padding=1), (7, 128, 4, 4)),
        (nn.Conv2d(640, 128, 3, padding=1), (8, 640, 4, 4)),
    ],
    ids=str,
)
def test_other_convolutions_stay_as_they_are(conv: nn.Conv2d, shape: tuple[int, ...]) -> None:
    frozen, x = FrozenConv2d(conv), torch.rand(shape)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), conv(x), rtol=1e-4, atol=1e-4)
    assert not frozen._transformed
