"""That no method looks at a number inside a step: on a card it would have to wait until everything before is computed.

The steps run here on the processor, in the branches that a card takes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shared import randomise_batch_norm
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dgad_tk.ascent import directions
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods import ADDONS, METHODS, Batch, build_method
from dgad_tk.methods.base import AdversarialMethod
from dgad_tk.models import build_model
from dgad_tk.models.trained import shared

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

NAMES = [*METHODS, *(f"dgad+{addon}" for addon in ADDONS)]


class Watch(TorchDispatchMode):
    """Notes each operation whose result's value or shape the host needs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(each, Tensor) and each.dtype == torch.bool for each in args[1] if each is not None
        )
        if masks or any(name.startswith(each) for each in WAITS):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def waits(name: str, monkeypatch: pytest.MonkeyPatch, norm: str = "linf", **options: Any) -> list[str]:
    monkeypatch.setattr(directions, "_asking_is_free", lambda gradient: False)
    # torch looks at the labels on a processor, to see whether they are classes, and on a card it does not.
    monkeypatch.setattr(F, "one_hot", lambda y, classes: torch.zeros(len(y), classes).long().scatter(1, y[:, None], 1))
    net = randomise_batch_norm(build_model("resnet8", in_channels=3, classes=10)).train()
    method = build_method(name, options)
    teacher = build_model("resnet8", in_channels=3, classes=10).eval().requires_grad_(False)
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    # The last epoch of several: terms that begin late have begun.
    batch = Batch(x, y, lambda kind: torch.full_like(x, 0.1), 4, epoch=9, epochs=10)
    threat = ThreatModel(norm=norm, eps=0.1, step_size=0.05, steps=2)
    net = shared(net)
    method.step(net, teacher if method.needs_teacher else None, batch, threat).loss.backward()  # type: ignore[no-untyped-call]
    with Watch() as watch:
        step = method.step(net, teacher if method.needs_teacher else None, batch, threat)
        step.loss.backward()  # type: ignore[no-untyped-call]
    return watch.found


@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits(name, monkeypatch) == []


@pytest.mark.parametrize("kind", ["linear", "none"])
def test_no_way_to_ask_the_teacher_waits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits("dgad", monkeypatch, teacher_in_attack=kind) == []


def test_the_steps_of_an_l2_ball_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert issubclass(METHODS["dgad"], AdversarialMethod)
    assert waits("dgad", monkeypatch, norm="l2") == []


def test_what_waits_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the batch is attacked: how many images that are, the host has to know."""
    assert waits("dgad", monkeypatch, attack_subset="used", pcr_weight=0.0) != []
    assert waits("dgad", monkeypatch, norm="l1") != []  # until the projection has come to its end
