"""Replayed passes: when a graph is used, that new weights reach it, and what happens where none can be recorded.

A stand-in for CUDA graphs records by calling the network itself, with its kernels as they lie in memory."""

from collections.abc import Callable

import pytest
import torch
from shared import randomise_batch_norm
from torch import Tensor, nn

from dgad_tk.ascent.folded import Folded
from dgad_tk.ascent.frozen_conv import FrozenConv2d
from dgad_tk.ascent.recorded import MOST, Recorded
from dgad_tk.models import build_model

Net = Callable[[Tensor], Tensor]


class Recorder:
    """Counts recordings and replays; a replay overwrites the result of the one before, as a graph's does."""

    def __init__(self) -> None:
        self.samples: list[Tensor] = []
        self.replays = 0

    def __call__(self, net: Net, sample: Tensor) -> Net:
        self.samples.append(sample)

        def replay(x: Tensor) -> Tensor:
            self.replays += 1
            return net(x)

        return replay


def recorded(net: Net, recorder: Callable[[Net, Tensor], Net], notes: list[str] | None = None) -> Recorded:
    return Recorded(net, [].append if notes is None else notes.append, record=recorder, on_card=lambda x: True)


def gradient(net: Net, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(net(x).square().sum(), x)[0]


def test_a_shape_is_recorded_when_it_comes_again_and_replayed_from_then_on() -> None:
    recorder, x = Recorder(), torch.rand(3, 2)
    net = recorded(lambda x: x.sin(), recorder)
    for turn in range(4):
        torch.testing.assert_close(gradient(net, x), 2 * x.sin() * x.cos())
        assert (len(recorder.samples), recorder.replays) == (min(turn, 1), turn)
    gradient(net, torch.rand(2, 2))
    assert len(recorder.samples) == 1  # the last batch of an epoch, once
    assert recorder.samples[0].requires_grad
    assert recorder.samples[0] is not x


def test_passes_without_a_gradient_are_left_alone() -> None:
    recorder, x = Recorder(), torch.rand(3, 2)
    net = recorded(torch.sin, recorder)
    for _ in range(3):
        net(x)
        with torch.no_grad():
            net(x.clone().requires_grad_())
    assert not recorder.samples


def test_a_second_forward_before_the_backward_is_no_replay() -> None:
    recorder = Recorder()
    net, x = recorded(torch.sin, recorder), torch.rand(3, 2)
    for _ in range(2):
        gradient(net, x)
    assert recorder.replays == 1
    images = x.clone().requires_grad_()
    first, second = net(images), net(images)
    assert recorder.replays == 2
    torch.autograd.grad((first + second).sum(), images)
    gradient(net, x)
    assert recorder.replays == 3


def test_each_precision_and_layout_has_a_graph_and_there_are_only_so_many() -> None:
    recorder = Recorder()
    net = recorded(lambda x: x * 2, recorder)
    x = torch.rand(2, 3, 4, 4)
    for each in (x, x.contiguous(memory_format=torch.channels_last)):
        for low in (False, True):
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    gradient(net, each)
    assert len(recorder.samples) == 4 == MOST
    for _ in range(3):
        gradient(net, torch.rand(5, 3, 4, 4))
    assert len(recorder.samples) == MOST


def test_where_nothing_can_be_recorded_the_network_runs_as_it_is_and_that_is_said_once() -> None:
    notes: list[str] = []

    def refuses(net: Net, sample: Tensor) -> Net:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    net, x = recorded(torch.sin, refuses, notes), torch.rand(3, 2)
    for _ in range(4):
        torch.testing.assert_close(gradient(net, x), 2 * x.sin() * x.cos())
    assert notes == [
        "cuda_graph: images (3, 2) are attacked without a graph: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_new_weights_take_the_place_of_the_old_ones_in_memory(precision: str) -> None:
    """A graph knows addresses alone."""
    model: nn.Module = randomise_batch_norm(build_model("mobilenetv2", in_channels=3, classes=10))
    view, x = Folded(model, recorded=True), torch.rand(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
        view(x)
        held = [module for module in view.modules() if isinstance(module, FrozenConv2d)]
        kernels = [kernel for module in held for kernel in module._kernels.values()]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        view.refresh(model)
        after = [kernel for module in held for kernel in module._kernels.values()]
        assert len(held) > 50
        assert all(a is b for a, b in zip(kernels, after, strict=True))
        expected = Folded(model)(x)
        assert torch.equal(view(x), expected)
