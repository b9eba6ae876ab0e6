"""Gradients through functions that have none: values stay, gradients are those of the function that is put in place."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from victims import as_onnx

from dgad_tk.ascent.rounding import rounded, without_rounding
from evaluators.attacks.strongest.maximum import AutoAttackMax
from evaluators.attacks.strongest.straight import Straight, hidden, rounds

SHAPE = (1, 4, 4)
CPU = torch.device("cpu")


class Of(nn.Module):
    """A function as a module; logits are sums of its halves."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x).flatten(1).float()


def _images() -> Tensor:
    return torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(3)).requires_grad_()


def _slope(net: nn.Module, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(net(x).sum(), x)
    return gradient


def _sparse(x: Tensor) -> Tensor:
    """MeanSparse: what is near a mean becomes the mean."""
    return torch.where((x - 0.5).abs() > 0.3, x, 0.5)


def _masked(x: Tensor) -> Tensor:
    return x * ((x > 0.3) & ~(x >= 0.9) | x.le(0.1))


ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "round": lambda x: torch.round(x * 8) / 8,
    "floor": lambda x: torch.floor(x * 8) / 8,
    "ceil": lambda x: (x * 8).ceil() / 8,
    "to": lambda x: (x * 255).to(torch.uint8).to(torch.float32) / 255,
    "long": lambda x: (x * 8).long().float() / 8,
}
JUMPS: dict[str, Callable[[Tensor], Tensor]] = {
    "where": _sparse,
    "mul": _masked,
    "masked_fill": lambda x: x.masked_fill(x < 0.4, 0.0),
    "threshold": lambda x: F.threshold(x, 0.5, 0.0),
    "hardshrink": lambda x: F.hardshrink(x, 0.5),
    "sign": lambda x: torch.sign(x - 0.5),
    "float": lambda x: (x > 0.5).float(),
}


@pytest.mark.parametrize("name", ROUNDINGS)
def test_a_rounding_keeps_its_values_and_counts_as_the_identity(name: str) -> None:
    net, x = Of(ROUNDINGS[name]), _images()
    assert torch.equal(Straight(net)(x), net(x))
    assert torch.allclose(_slope(Straight(net), x), torch.ones_like(x))
    assert rounds(hidden(net, SHAPE, CPU))
    smooth = Straight(net, smooth=True)(x)
    assert torch.allclose(smooth, x.flatten(1), atol=1e-6)


@pytest.mark.parametrize("name", JUMPS)
def test_a_jump_keeps_its_values_and_gets_a_gradient_everywhere(name: str) -> None:
    net, x = Of(JUMPS[name]), _images()
    assert torch.equal(Straight(net)(x), net(x))
    assert (_slope(Straight(net), x) > 0).float().mean() > (0.5 if name == "mul" else 0.99)
    assert name in hidden(net, SHAPE, CPU)
    assert not rounds({name} - {"float"})


def test_the_gradient_of_a_gate_is_that_of_the_mixture_of_its_branches() -> None:
    """By hand: w x + (1 - w) / 2, w the sigmoid of (|x - 1/2| - 0.3) / t, and t the mean size of that in an image."""
    x = _images()
    gap = (x - 0.5).abs() - 0.3
    weight = torch.sigmoid(gap / gap.detach().abs().mean(dim=(1, 2, 3), keepdim=True))
    (expected,) = torch.autograd.grad((weight * x + (1 - weight) * 0.5).sum(), x)
    assert torch.allclose(_slope(Straight(Of(_sparse)), x), expected, atol=1e-5)


def test_no_image_changes_the_gradient_of_another() -> None:
    x, net = _images(), Straight(Of(_sparse))
    alone = torch.cat([_slope(net, each.detach().requires_grad_()) for each in torch.split(x, 1)])
    assert torch.allclose(_slope(net, x), alone)


def test_what_a_gate_hides_does_not_spread_if_it_is_not_finite() -> None:
    net, x = Straight(Of(lambda x: torch.where(x > 2, torch.log(-x), x))), _images()
    assert _slope(net, x).isfinite().all()


def test_functions_with_gradients_and_constant_masks_are_left_alone() -> None:
    mask = torch.rand(*SHAPE) > 0.5
    net = Of(lambda x: F.relu(torch.where(mask, x, 0.0)) + F.threshold(x, 0.0, 0.0))
    assert hidden(net, SHAPE, CPU) == set()
    assert torch.equal(_slope(Straight(net), x := _images()), _slope(net, x))


def test_an_onnx_file_with_a_threshold_and_a_rounding_is_seen_into(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = (torch.round(x * 64).to(torch.int32) + 1).to(torch.float32) / 64
            return self.linear(torch.where((x - 0.5).abs() > 0.2, x, 0.5).flatten(1))

    predictor = as_onnx(Net().eval(), tmp_path, SHAPE)
    assert predictor.module is not None
    names = hidden(predictor.module, SHAPE, CPU)
    assert {"round", "to", "add", "where"} <= names
    x = _images()
    assert torch.equal(Straight(predictor.module)(x), predictor.module(x))
    assert _slope(Straight(predictor.module), x).abs().min() > 0


def test_roundings_are_left_out_only_while_that_is_open() -> None:
    x = torch.tensor([0.4, 1.6])
    with without_rounding():
        assert torch.equal(rounded(x), x)
    assert torch.equal(rounded(x), torch.tensor([0.0, 2.0]))


def test_a_torchscript_program_is_not_seen_into_and_that_is_said() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        script = torch.jit.script(net)
    for module, told in ((net, []), (script, ["a TorchScript program is not seen into"])):
        estimator = PyTorchClassifier(module, nn.CrossEntropyLoss(), SHAPE, 4, clip_values=(0.0, 1.0))
        attack = AutoAttackMax(estimator, eps=0.01, queries=1, steps=1, restarts=1)
        found = attack.run(torch.rand(1, *SHAPE).numpy(), [0]).warnings
        assert [text for text in found if text.startswith("a Torch")] == [
            f"{each}: no gradient passes straight through it" for each in told
        ]
