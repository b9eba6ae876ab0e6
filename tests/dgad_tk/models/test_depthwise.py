"""Strided depthwise convolutions in bfloat16 against torch's own: values, gradients, and what is left alone."""

import copy

import pytest
import torch
from shared import randomise_batch_norm
from torch import Tensor, nn

from dgad_tk.models import build_model
from dgad_tk.models.depthwise import QuickDepthwise, StridedDepthwise
from dgad_tk.models.trained import Trained


@pytest.mark.parametrize("sides", [(8, 8), (9, 7), (5, 12)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (3, 2, 0), (5, 2, 2), (5, 3, 1), (2, 2, 0)])
def test_gradients_are_those_of_torch(sides: tuple[int, int], kernel: int, stride: int, padding: int) -> None:
    """In float64, where only a formula could differ."""
    conv = nn.Conv2d(4, 4, kernel, stride, padding, groups=4).double()
    x = torch.rand(3, 4, *sides, dtype=torch.float64, requires_grad=True)
    weights = [x, conv.weight, conv.bias]
    ours = StridedDepthwise.apply(*weights, conv.stride, conv.padding)
    expected = conv(x)
    torch.testing.assert_close(ours, expected)
    seed = torch.rand_like(expected)
    found = torch.autograd.grad(ours, weights, seed)
    for a, b in zip(found, torch.autograd.grad(expected, weights, seed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_have_gradients() -> None:
    x = torch.rand(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(3, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, w: StridedDepthwise.apply(x, w, None, (2, 2), (1, 1)), (x, weight))


def test_the_outer_step_of_mobilenetv2_uses_it_and_its_gradients_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    real = StridedDepthwise.apply

    def watched(x: Tensor, *more: object) -> Tensor:
        seen.append(more[2])  # type: ignore[arg-type]
        found: Tensor = real(x, *more)
        return found

    monkeypatch.setattr(StridedDepthwise, "apply", watched)
    net = randomise_batch_norm(build_model("mobilenetv2", in_channels=3, classes=10)).train()
    x = torch.rand(4, 3, 32, 32)
    gradients = []
    for wrapped in (False, True):
        own = copy.deepcopy(net)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            (Trained(own) if wrapped else own)(x).float().square().sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in own.parameters()]))
    assert seen == [(2, 2)] * 3
    # Both round each layer's result to 8 bits; they differ in where a sum is rounded.
    assert (gradients[1] - gradients[0]).norm() <= 0.05 * gradients[0].norm()


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, 1, 1, groups=4),
        nn.Conv2d(4, 8, 3, 2, 1, groups=4),
        nn.Conv2d(4, 4, 3, 2, 1),
        nn.Conv2d(4, 4, 3, 2, 3, groups=4),
        nn.Conv2d(4, 4, 3, 2, 1, dilation=2, groups=4),
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*more: object) -> Tensor:
        raise AssertionError("this convolution is not meant")

    monkeypatch.setattr(StridedDepthwise, "apply", never)
    x = torch.rand(2, 4, 8, 8, requires_grad=True)
    with QuickDepthwise():
        with torch.autocast("cpu", torch.bfloat16):
            conv(x)
        nn.Conv2d(4, 4, 3, 2, 1, groups=4)(x)  # in float32
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            nn.Conv2d(4, 4, 3, 2, 1, groups=4)(x)
