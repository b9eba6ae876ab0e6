"""Reading of the golden vectors in `tests/data`: one training step a file, computed with the authors' released code."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods import Batch, Method, Step

DATA = Path(__file__).parents[1] / "data"
TOLERANCE = 1e-9

KL = {"kl_adv": "term.kl_adv", "kl_clean": "term.kl_clean"}
ADV = {"kl_adv": "term.kl_adv"}
DGAD = {"l_st": "term.l_st", "l_at": "term.l_at"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "pgd_at": ("pgd-at", {}, {"ce_adv": "term.ce_adv", "ce_clean": "term.ce_clean"}),
    "trades": ("trades", {"beta": 6.0}, {"ce_clean": "term.ce_clean", "kl": "term.kl"}),
    "mart": ("mart", {"beta": 6.0}, {"bce": "term.bce", "robust": "term.robust"}),
    "ard": ("ard", {"kl_reduction": "elementmean"}, {"kl": "term.kl", "ce_clean": "term.ce_clean"}),
    "iad1_before": ("iad", {}, {"ce_clean": "term.ce_clean"}),
    "iad1_after": ("iad", {}, {"ce_clean": "term.ce_clean"}),
    "rslad": ("rslad", {"kl_reduction": "elementmean", "log_offset": 1e-5}, KL),
    "adaad_c10_alpha1": ("adaad", {"kl_reduction": "elementmean"}, ADV),
    "adaad_c10_alpha05": ("adaad", {"kl_reduction": "elementmean", "alpha": 0.5}, KL),
    "adaad_c100_alpha1": ("adaad", {}, ADV),
    "adaad_c100_alpha05": ("adaad", {"alpha": 0.5}, KL),
    "dgad_resnet": ("dgad", {"pcr_weight": 5.0}, DGAD | {"pcr": "term.pcr"}),
    "dgad_mobilenetv2": ("dgad", {"pcr_weight": 10.0, "mobilenet_loss": "released"}, DGAD | {"pcr": "term.pcr"}),
    "dgad_alp_off": ("dgad", {"pcr_weight": 0.0}, DGAD),
}
"""By file: the method, its options, and the names of its terms there."""

EPOCH = {"iad1_after": 60}
"""Of 200; the others do not depend on it."""


@dataclass
class Golden:
    """One file, and the step of ours that is held against it."""

    name: str
    arrays: dict[str, np.ndarray[Any, Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        with np.load(DATA / f"{self.name}.npz") as file:
            self.arrays = dict(file)

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    @property
    def config(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(str(self.arrays["config"]))
        return loaded

    def network(self, owner: str) -> nn.Sequential:
        """The student or teacher that the file stores, in float64."""
        tensors = {key.split(".", 1)[1]: self[key] for key in self.arrays if key.startswith(owner + ".")}
        width, classes = len(tensors["0.bias"]), len(tensors["5.bias"])
        net = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, classes),
        ).double()
        net.load_state_dict(tensors)
        return net

    def threat(self) -> ThreatModel:
        return ThreatModel(eps=float(self["eps"]), step_size=float(self["step"]), steps=int(self["steps"]))

    def batch(self, nominal_size: int = 16, epoch: int = 0) -> Batch:
        return Batch(self["x"], self["y"], self._noise, nominal_size, epoch, epochs=200)

    def _noise(self, kind: str) -> Tensor:
        """As drawn; the uniform one is stored in units of the pixels, and methods take it on [-1, 1]."""
        stored = self["noise_raw"]
        assert (self.config_init() == "uniform") == (kind == "uniform")
        return stored / float(self["eps"]) if kind == "uniform" else stored

    def config_init(self) -> str:
        """The start of the attack that the file was made with."""
        return str(self.config["init"])

    def run(self, method: Method, student: nn.Module, **changes: Any) -> Step:
        """Our step on the stored weights, batch and noise, with its gradients in `student`."""
        teacher = self.network("teacher").eval().requires_grad_(False) if method.needs_teacher else None
        step = method.step(student.train(), teacher, changes.get("batch", self.batch()), self.threat())
        step.loss.backward()  # type: ignore[no-untyped-call]
        return step


def close(ours: Tensor, reference: Tensor) -> bool:
    """The oracles' own criterion."""
    return bool((ours - reference).abs().max() <= TOLERANCE * reference.abs().max())


@contextmanager
def forward_trace(student: nn.Sequential) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Running mean and variance of the student after each of its train-mode forwards."""
    norm, trace = student[1], []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training:
            trace.append((norm.running_mean.clone(), norm.running_var.clone()))

    handle = student.register_forward_hook(note)
    try:
        yield trace
    finally:
        handle.remove()
