"""Folding against the module itself in eval mode: values, gradients, and what must not be folded."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from architectures import SMALLEST
from shared import randomise_batch_norm
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from dgad_tk.ascent.folded import Folded, folded
from dgad_tk.models import build_model

pytestmark = pytest.mark.portable


@pytest.mark.parametrize("name", SMALLEST)
def test_same_function_with_no_batch_norm_left_behind_a_convolution(name: str) -> None:
    model = randomise_batch_norm(build_model(name, in_channels=3, classes=10, mean=[0.1] * 3, std=[0.3] * 3)).double()
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    view = folded(model)
    kept = [where for where, module in view.named_modules() if isinstance(module, nn.BatchNorm2d)]
    # Pre-activation blocks and their last BatchNorm read sums, which take no folding.
    assert all(where.endswith("bn1") for where in kept)
    assert bool(kept) == name.startswith(("preact", "wrn"))
    assert not any(parameter.requires_grad for parameter in view.parameters())
    assert model.training
    expected, found = model.eval()(x), view(x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.rand_like(expected)
    ours, theirs = (torch.autograd.grad((logits * weights).sum(), x)[0] for logits in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_batch_norm_of_all_processes_is_folded_too() -> None:
    net = randomise_batch_norm(build_model("resnet8", in_channels=1, classes=10)).double()
    view = Folded(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net)))
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in view.modules())
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(view(x), net.eval()(x), rtol=1e-10, atol=1e-10)


def test_the_view_follows_the_weights_and_is_made_once() -> None:
    model = randomise_batch_norm(build_model("resnet8", in_channels=1, classes=10))
    x = torch.rand(4, 1, 8, 8)
    first = folded(model)
    before = first(x)
    model.train()(x)  # statistics move
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    second = folded(model)
    assert second is first
    assert not torch.allclose(second(x), before)
    torch.testing.assert_close(second(x), model.eval()(x), rtol=1e-4, atol=1e-5)


class Awkward(nn.Module):
    """A convolution read twice, one called twice, a BatchNorm without statistics, one before its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.norm_a = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.called_twice, self.norm_b = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.conv, self.stateless = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)
        self.norm_first, self.last = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.read_twice(x)
        x = self.norm_a(shared) + shared
        x = self.norm_b(self.called_twice(self.called_twice(x)))
        x = self.stateless(self.conv(x))
        out: Tensor = self.last(self.norm_first(x))
        return out


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out if out.sum() > 0 else -out


class NormAndReLU(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a BatchNorm that does more than its name says."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class OtherNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), NormAndReLU(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


@pytest.mark.parametrize("build", [Awkward, Branching, OtherNorm])
def test_what_cannot_be_folded_stays(build: type[nn.Module]) -> None:
    model = randomise_batch_norm_with_some(build()).double()
    view = Folded(model)
    assert view.pairs == []
    x = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(view(x), model.eval()(x))


def test_torchscript_is_copied() -> None:
    """It has no Python code to trace."""
    net = randomise_batch_norm(nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))).eval()
    with pytest.warns(FutureWarning, match="deprecated"):
        model = torch.jit.trace(net, torch.rand(1, 2, 4, 4))  # type: ignore[no-untyped-call]
    view, x = Folded(model), torch.rand(3, 2, 4, 4)
    assert view.pairs == []
    torch.testing.assert_close(view(x), model(x))


def test_five_axes_have_no_channels_last() -> None:
    class Levels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > torch.linspace(0, 1, 4).view(-1, 1, 1, 1, 1)).float().mean(dim=0)

    x = torch.rand(3, 2, 4, 4)
    torch.testing.assert_close(Folded(Levels())(x), Levels()(x))


def tied() -> nn.Module:
    """Two convolutions with the same weights, and each with a BatchNorm of its own behind it."""
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3, bias=False))
    net.append(nn.BatchNorm2d(2))
    net[3].weight = net[0].weight
    return net


def tied_without_norm() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    net[2].weight, net[2].bias = net[0].weight, net[0].bias
    return net


def normalised_weights() -> nn.Module:
    """A class that torch derives from Conv2d, and which computes its weight from other parameters."""
    return nn.Sequential(weight_norm(nn.Conv2d(2, 2, 3)), nn.BatchNorm2d(2))


def spectral() -> nn.Module:
    return nn.Sequential(spectral_norm(nn.Conv2d(2, 2, 3)), nn.BatchNorm2d(2))


def hooked(place: int, before: bool = False) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU())
    if before:
        net[place].register_forward_pre_hook(lambda module, given: (given[0] * 2,))
    else:
        net[place].register_forward_hook(lambda module, given, made: made * 2 - 1)
    return net


class ReadElsewhere(nn.Module):
    """A convolution whose weights something else reads as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.norm(self.conv(x)) + self.conv.weight.sum()
        return made


class OwnNorm(nn.Module):
    """A BatchNorm written out: arithmetic on buffers, which move in training."""

    mean: Tensor
    variance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)
        self.register_buffer("mean", torch.rand(2))
        self.register_buffer("variance", torch.rand(2) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.variance + 1e-5).rsqrt()
        made: Tensor = (self.conv(x) - self.mean[:, None, None]) * scale[:, None, None]
        return made


class Looking(nn.Module):
    """Code that fails on what is no tensor, in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise KeyError("no tensor")
        made: Tensor = self.conv(x)
        return made


class Masked(OwnNorm):
    """`forward` takes more than images, and looks whether it was given."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        made = super().forward(x)
        return made if scale is None else made * 2


class Mapping(OwnNorm):
    """Takes a dictionary of images as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if isinstance(x, Tensor) else x["images"])


class Catching(OwnNorm):
    """Does something else where its question cannot be answered."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            bright = bool(x.mean() > 2)
        except Exception:  # noqa: BLE001 - what networks do
            bright = True
        return super().forward(x * 3 if bright else x)


class Drawing(nn.Module):
    """Adds noise, which a graph would hold as it was when it was traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(1)


def test_noise_is_drawn_anew() -> None:
    view, x = Folded(Drawing()), torch.zeros(2, 1, 4, 4)
    assert not torch.equal(view(x), view(x))


def hooked_itself(before: bool) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    if before:
        net.register_forward_pre_hook(lambda module, given: (given[0] * 2,))
    else:
        net.register_forward_hook(lambda module, given, made: made * 2 - 1)
    return net


@pytest.mark.parametrize(
    "build",
    [
        *(Masked, Mapping, Catching, partial(hooked_itself, before=False), partial(hooked_itself, before=True)),
        *(tied, tied_without_norm, normalised_weights, spectral, ReadElsewhere, OwnNorm, Looking),
        *(partial(hooked, place, before) for place in range(5) for before in (False, True)),
    ],
)
def test_networks_written_in_other_ways_compute_the_same(build: Callable[[], nn.Module]) -> None:
    model = randomise_batch_norm(build()).double().eval()
    x = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    view = Folded(model)
    torch.testing.assert_close(view(x), model(x))
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.mul_(1.5) if tensor.is_floating_point() else None
    view.refresh(model)
    torch.testing.assert_close(view(x), model(x))


def randomise_batch_norm_with_some(model: nn.Module) -> nn.Module:
    """As `randomise_batch_norm`, leaving those without statistics alone."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            randomise_batch_norm(module)
    return model


class Viewing(nn.Module):
    """A network as many write it: `view` where others flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).view(x.size(0), -1))


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("script", [False, True], ids=["traced", "TorchScript"])
def test_networks_that_view_their_maps(script: bool) -> None:
    net = Viewing().eval().double()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        folded_net = Folded(torch.jit.trace(net, x, check_trace=False) if script else net)
        torch.testing.assert_close(folded_net(x), net(x))
        torch.testing.assert_close(folded_net(x[:1]), net(x[:1]))
