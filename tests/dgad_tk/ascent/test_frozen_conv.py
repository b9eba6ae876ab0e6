"""What the folded copy does on its own account, against the plain module in double precision: values and gradients."""

from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shared import randomise_batch_norm
from torch import Tensor, nn

from dgad_tk.ascent.folded import Folded
from dgad_tk.ascent.frozen_conv import FrozenConv2d
from dgad_tk.models import build_model

pytestmark = pytest.mark.portable

Step = Callable[["Parts", Tensor], Tensor]


class Parts(nn.Module):
    """Convolutions of which `step` makes a network."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step
        self.stem, self.same = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1)
        self.down, self.point = nn.Conv2d(5, 6, 3, stride=2, padding=1), nn.Conv2d(5, 6, 1, stride=2)
        self.wide, self.after = nn.Conv2d(5, 6, 5, stride=2, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu, self.relu_in_place = nn.ReLU(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, x)


def residual_block(net: Parts, x: Tensor) -> Tensor:
    """A ReLU behind a convolution, and one behind a sum, which stays as it is."""
    x = F.relu(net.stem(x))
    out = net.after(F.relu(net.down(x)))
    return F.relu(out + net.point(x))


def modules_in_place(net: Parts, x: Tensor) -> Tensor:
    x = net.relu(net.stem(x))
    return net.relu_in_place(torch.add(x, net.same(x)))


def added_in_place(net: Parts, x: Tensor) -> Tensor:
    out = net.down(torch.relu(net.stem(x)))
    out += net.point(F.relu(net.stem(x)))
    return out


def read_again(net: Parts, x: Tensor) -> Tensor:
    """The other reader must not get what the ReLU wrote."""
    x = net.stem(x)
    return F.relu(x) + x


def rectified_twice(net: Parts, x: Tensor) -> Tensor:
    """Each ReLU is the other's second reader."""
    x = net.stem(x)
    return F.relu(x) * torch.relu(x)


def rectified_is_read_again(net: Parts, x: Tensor) -> Tensor:
    x = F.relu(net.stem(x))
    return x * net.same(x).exp()


def called_twice(net: Parts, x: Tensor) -> Tensor:
    """One convolution, two results."""
    x = F.relu(net.stem(x))
    return F.relu(net.same(F.relu(net.same(x)))) + net.same(x)


def wide(net: Parts, x: Tensor) -> Tensor:
    return net.wide(F.relu(net.stem(x)))


def changed_between(net: Parts, x: Tensor) -> Tensor:
    """Something writes to what a convolution has read already."""
    x = net.stem(x).sin()
    out = net.down(x)
    x.mul_(2)
    return out + net.point(x)


RECTIFIED = {  # ReLUs that work in place
    residual_block: 2,
    modules_in_place: 1,
    added_in_place: 2,
    read_again: 0,
    rectified_twice: 0,
    rectified_is_read_again: 1,
    called_twice: 3,
    wide: 1,
    changed_between: 0,
}


def made_of(step: Step) -> Parts:
    torch.manual_seed(0)
    return Parts(step).double().eval().requires_grad_(False)


def assert_same(net: nn.Module, x: Tensor, tolerance: float = 1e-10) -> None:
    """Logits with and without a gradient, and the gradient of a weighted sum of them."""
    view, before = Folded(net), x.clone()
    x = x.requires_grad_()
    expected, found = net(x), view(x)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=x.dtype).reshape(expected.shape)
    ours, theirs = (torch.autograd.grad((logits * weights).sum(), x)[0] for logits in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        torch.testing.assert_close(view(x), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(x, before)


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("step", [step for step in RECTIFIED if step is not changed_between])
def test_values_and_gradients(step: Step, side: int) -> None:
    images = torch.rand(3, 3, side, side, dtype=torch.float64)
    assert_same(made_of(step), images)
    assert_same(made_of(step).float(), images.float(), tolerance=1e-5)


@pytest.mark.parametrize("step", RECTIFIED)
def test_which_relus_work_in_place(step: Step) -> None:
    nodes = Folded(made_of(step)).net.graph.nodes  # type: ignore[union-attr]
    assert sum(node.kwargs.get("inplace", False) for node in nodes) == RECTIFIED[step]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2, (2, 1), 3])
@pytest.mark.parametrize(("size", "padding"), [(1, 0), (3, 1), (3, 2), (2, 0), ((1, 3), (0, 1)), (3, 3)])
def test_gradients_by_turned_kernels(size: Any, padding: Any, stride: Any, groups: int) -> None:
    """Depthwise and strided 1x1 kernels; the others, and those whose padding is too wide, are torch's own."""
    conv = nn.Conv2d(4, 8, size, stride, padding, groups=groups).double().requires_grad_(False)
    frozen = FrozenConv2d(conv)
    assert frozen.turns == ((groups == 4 or (size == 1 and stride != 1)) and (size, padding) != (3, 3))
    for sides in ((8, 8), (7, 10)):
        x = torch.rand(2, 4, *sides, dtype=torch.float64, requires_grad=True)
        expected, found = conv(x), frozen(x)
        weights = torch.rand_like(expected)
        ours, theirs = (torch.autograd.grad((each * weights).sum(), x)[0] for each in (found, expected))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_input_that_is_changed_between_two_readers() -> None:
    """Autograd refuses such a network, so that only its answers can be compared."""
    net, x = made_of(changed_between), torch.rand(3, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(Folded(net)(x), net(x), rtol=1e-10, atol=1e-10)


def test_weights_are_followed() -> None:
    net = randomise_batch_norm(build_model("resnet8", in_channels=3, classes=10)).double().eval()
    view, x = Folded(net), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    view(x.requires_grad_())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.1)
    view.refresh(net)
    torch.testing.assert_close(view(x), net(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["resnet8", "mobilenetv2"])
def test_under_autocast(name: str) -> None:
    """As far from the exact result as the plain module is; the kernels differ in what they round.

    Of 20 networks ours was 0.6 to 2.1 times as far, most near 1: the middle one of five is compared.
    """

    def ratio(seed: int) -> float:
        torch.manual_seed(seed)
        net = randomise_batch_norm(build_model(name, in_channels=3, classes=10), seed).eval().requires_grad_(False)
        x = torch.rand(4, 3, 16, 16, requires_grad=True)
        exact = torch.autograd.grad(net(x).square().sum(), x)[0]

        def off(module: nn.Module) -> float:
            with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
                logits = module(x)
            found = torch.autograd.grad(logits.float().square().sum(), x)[0]
            return float((found - exact).norm() / exact.norm())

        return off(Folded(net)) / off(net)

    assert median(map(ratio, range(5))) < 1.5


def test_no_images_and_one() -> None:
    net = made_of(residual_block).float()
    view = Folded(net)
    for count in (0, 1):
        x = torch.rand(count, 3, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(view(x), net(x))
