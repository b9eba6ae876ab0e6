"""The config of a training run: every setting that changes its results, checked, saved in the run folder.

Imports no torch, so that the command line can check a config quickly.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dgad_tk.common import lookup, written_aside
from dgad_tk.config.moments import When
from dgad_tk.config.optimizers import OPTIMIZERS, checked_optimizer
from dgad_tk.config.parsing import TypedKeys, written_yaml
from dgad_tk.config.threat import ThreatModel
from dgad_tk.strangers.number_text import parse_fraction

AUTO = "auto"
"""`teacher` of a run that trains its teacher first."""

FREE = {"checkpoint_minutes", "paper"}
"""Keys that a resumed run may change."""

PLACES = {"data_dir", "teacher", "device", "init"}
"""Keys that say where something is. A resumed run may change them, since it compares SHA-256 sums of the content."""

LATER = {
    *("resize", "channels", "init", "init_mean", "init_std"),
    *("accumulate", "freeze_bn", "bn_momentum", "optimizer", "adam_betas", "adam_eps", "decay_weights_only", "augment"),
    "cuda_graph",
}
"""Keys that older versions did not write."""


# Imported only when there is a value: the package of these modules imports numpy.
def _size(value: object) -> int | str | None:
    from dgad_tk.data.images.size import read_written

    return read_written(value) if value is not None else None


def _resize(name: str) -> str:
    from dgad_tk.data.images.request import checked_resize

    return checked_resize(name)


def _channels(number: int) -> int:
    from dgad_tk.data.images.request import checked_channels

    return checked_channels(number)


class TrainConfig(TypedKeys):
    """One training run. Defaults are the paper's for CIFAR; `resolved` replaces them by the dataset's own."""

    dataset: str = "digits"
    data_dir: Path | None = None
    image_size: Annotated[int | str | None, BeforeValidator(_size)] = None
    """Of an image folder: `HxW`, or a whole number for a square."""
    resize: Annotated[str, AfterValidator(_resize)] | None = None
    """How pictures of an image folder get that size: a row of RESIZES."""
    channels: Annotated[int, AfterValidator(_channels)] | None = None
    """1 reads an image folder as grey, 3 as RGB. The default is what a teacher from a file takes, else RGB."""
    limit_train: int | None = Field(None, ge=2)
    """The first N of the training split's fixed stratified order."""
    augment: tuple[str, ...] = ()
    """Rows of AUGMENTS in their order, `NAME` or `NAME:AMOUNT`. Empty is the dataset's own crop and flip."""

    method: str = "dgad"
    method_options: dict[str, Any] = Field({})
    """Hyper-parameters of the method that differ from its defaults (`--set dgad.pcr_weight=10`)."""
    student: str = "resnet8"
    init: Path | None = None
    """Run folder or file of weights that the student starts from; an ONNX file is the student itself."""
    init_mean: tuple[float, ...] | None = None
    init_std: tuple[float, ...] | None = None
    """Normalisation that these weights expect, one value per channel; none where that is inside."""
    normalize: Literal["none", "dataset"] = "none"
    """Normalisation inside the student: none as in the paper's code, or the training split's mean and std."""

    teacher: str = AUTO
    """`auto` trains one first; else a run folder or a file of weights. Ignored by methods without a teacher."""
    teacher_model: str = ""
    """Network of the teacher. The default is resnet20 for an auto teacher, else the network that the file holds."""
    teacher_mean: tuple[float, ...] = ()
    teacher_std: tuple[float, ...] = ()
    """Normalisation that a teacher from a file expects, one value per channel; empty where that is inside."""
    teacher_method: str = "trades"
    teacher_epochs: int | None = Field(None, ge=1)
    teacher_lr: float | None = Field(None, gt=0)
    teacher_options: dict[str, Any] = Field({})
    """Hyper-parameters of an auto teacher's method (`--set teacher_options.beta=3`)."""

    threat: ThreatModel | None = None

    epochs: int = Field(200, ge=1)
    batch_size: int = Field(128, ge=2)
    accumulate: int = Field(1, ge=1)
    """Number of parts that a batch goes through the networks in. The loss is that of the whole batch."""
    freeze_bn: bool = False
    """BatchNorm in the student normalises with its running statistics, which stay; its affine weights are trained."""
    bn_momentum: float | None = Field(None, gt=0, le=1)
    """Share of a batch in BatchNorm's running statistics; the default is each network's own, which is 0.1 for most."""
    optimizer: Annotated[str, AfterValidator(checked_optimizer)] = "sgd"
    """Row of OPTIMIZERS."""
    lr: float = Field(0.1, gt=0)
    """1e-3 for adamw."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd, as `nesterov`."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(5e-4, ge=0)
    """1e-2 for adamw, whose decay is multiplied by the learning rate alone."""
    decay_weights_only: bool = False
    """No weight decay on norms and biases."""
    nesterov: bool = False
    schedule: Literal["piecewise", "cosine", "cyclic", "constant"] = "piecewise"
    """`cyclic` rises linearly from 0 to `lr` over two fifths of the run, and falls linearly back to 0."""
    milestones: tuple[When, ...] = (0.5, 0.75)
    """When the learning rate falls to a tenth, as shares or as epochs. The paper's are 100 and 150 of 200."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Number of epochs over which the learning rate rises linearly to that of its schedule."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest L2 norm of the gradient over all weights; a longer one is scaled down to it."""

    averaging: Literal["none", "ema", "swa"] = "none"
    """Select and save an average of the weights: exponential over the steps, or the mean over the late epochs."""
    ema_decay: float = Field(0.999, gt=0, lt=1)
    swa_start: When = 0.75
    awp_gamma: float = Field(0.0, ge=0)
    """Adversarial weight perturbation, relative to each layer's norm (Wu et al., NeurIPS 2020: 5e-3); 0 is off."""
    awp_start: When = 0

    select_on: Literal["val", "test"] = "val"
    """Split for choosing the best epoch. The papers use `test`; that leaks, and the record says so."""
    select_every: int = Field(1, ge=1)
    early_stop: int | None = Field(None, ge=1)
    """Number of epochs without a better one after which the run stops."""
    max_seconds: float | None = Field(None, gt=0)
    """Stop after the epoch in which this time has passed. The result then depends on the machine."""

    seed: int = Field(0, ge=0, lt=2**32)
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the inner maximisation."""
    outer_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the forward passes that update the weights."""
    compile: bool = False
    """Compile the networks of the inner maximisation with torch.compile."""
    cuda_graph: bool = False
    """On a GPU, replay the passes of the inner maximisation as CUDA graphs."""
    sync_bn: bool = False
    """Compute BatchNorm's statistics over the batches of all processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_minutes: float | None = Field(10.0, gt=0)
    """Minutes between checkpoints within an epoch. The end of each epoch is always saved."""

    paper: dict[str, Any] = Field({})
    """What the paper prints for this run. Only reports use it."""

    @model_validator(mode="before")
    @classmethod
    def _complete_threat(cls, values: Any) -> Any:
        """Complete a partial threat model by the dataset's radius: `threat: {steps: 7}` is enough."""
        threat = values.get("threat") if isinstance(values, dict) else None
        if not isinstance(threat, dict) or {"eps", "step_size"} <= threat.keys():
            return values
        from dgad_tk.data import DATASETS  # numpy, and no torch

        spec = DATASETS.get(str(values.get("dataset", cls.model_fields["dataset"].default)))
        eps = threat.get("eps", spec.eps.get(str(threat.get("norm", "linf"))) if spec else None)
        if eps is None:
            return values
        step_size = parse_fraction(eps, upper=math.inf) / 4
        return {**values, "threat": {"eps": eps, "step_size": step_size, **threat}}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones must ascend, got {list(self.milestones)}")
        if len(self.teacher_mean) != len(self.teacher_std):
            raise ValueError(f"teacher_mean has {len(self.teacher_mean)} values, teacher_std {len(self.teacher_std)}")
        if self.teacher_mean and self.teacher == AUTO:
            raise ValueError("teacher_mean and teacher_std are of a teacher from a file, and teacher is auto")
        if len(self.init_mean or ()) != len(self.init_std or ()):
            raise ValueError(f"init_mean has {len(self.init_mean or ())} values, init_std {len(self.init_std or ())}")
        if self.init_mean and self.init is None:
            raise ValueError("init_mean and init_std are of weights to start from, and there is no init")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas must be from 0 to below 1, got {list(self.adam_betas)}")
        takers = {key: name for name, row in OPTIMIZERS.items() for key in row.takes.values()}
        for key in self.changed(*takers).keys() - OPTIMIZERS[self.optimizer].takes.values():
            raise ValueError(f"{key} is of {takers[key]}, and the optimizer is {self.optimizer}")
        if self.compile and self.cuda_graph:
            raise ValueError("compile and cuda_graph are two ways to run the same passes: choose one")
        if self.accumulate > 1 and self.cuda_graph:
            raise ValueError("cuda_graph replays passes of whole batches, and accumulate cuts them into parts")
        if self.accumulate > 1 and self.sync_bn:
            raise ValueError("sync_bn takes its statistics over whole batches, and accumulate cuts them into parts")
        return self

    @property
    def attack(self) -> ThreatModel:
        """Threat model of a resolved config."""
        if self.threat is None:
            raise ValueError("an unresolved config has no threat model")
        return self.threat

    def resolved(self) -> Self:
        """This config with the dataset's values for keys that nobody set; UserError for an unknown dataset."""
        from dgad_tk.data import DATASETS  # numpy, and no torch

        spec = lookup(DATASETS, self.dataset, "dataset")
        own: dict[str, Any] = {key: value for key, value in spec.training.items() if key not in self.model_fields_set}
        if self.teacher_method != type(self).model_fields["teacher_method"].default:
            own.pop("teacher_options", None)  # the dataset's options belong to another method
        if defaults := OPTIMIZERS[self.optimizer].defaults:
            own.pop("teacher_lr", None)  # the dataset's rates belong to another optimizer
            own |= {key: value for key, value in defaults.items() if key not in self.model_fields_set}
        # By default an auto teacher has the student's epochs and learning rate.
        for key in ("epochs", "lr"):
            same = own.get(key, getattr(self, key))
            if key in self.model_fields_set:
                own.pop(f"teacher_{key}", None)
            own[f"teacher_{key}"] = getattr(self, f"teacher_{key}") or own.get(f"teacher_{key}", same)
        if self.teacher == AUTO and not self.teacher_model:
            own["teacher_model"] = "resnet20"
        own["threat"] = self.threat or ThreatModel.of("linf", spec.eps["linf"])
        return self.model_copy(update=own)

    def for_teacher(self) -> Self:
        """The config of the run that trains this run's auto teacher."""
        return self.model_copy(
            update={
                "method": self.teacher_method,
                "method_options": self.teacher_options,
                "student": self.teacher_model,
                "teacher": AUTO,
                "init": None,
                "init_mean": None,
                "init_std": None,
                "teacher_mean": (),
                "teacher_std": (),
                "freeze_bn": False,
                "epochs": self.teacher_epochs,
                "lr": self.teacher_lr,
                "paper": {},
            }
        )

    def to_yaml(self) -> str:
        values = self.model_dump(mode="json")
        # Left out where nobody set them, so that runs of older versions keep their text, which names cached surrogates.
        later = self.changed(*LATER)
        return written_yaml({key: value for key, value in values.items() if key in later or key not in LATER})

    def changed(self, *keys: str) -> dict[str, Any]:
        """Those of the keys that are not at their defaults, with their values, in plain types."""
        own = {key for key in keys if getattr(self, key) != type(self).model_fields[key].default}
        return self.model_dump(mode="json", include=own)

    def save(self, path: Path) -> None:
        with written_aside(path) as aside:
            aside.write_text(self.to_yaml(), encoding="utf-8")

    def differences(self, other: "TrainConfig") -> list[str]:
        """`key: mine, not theirs` for each key that differs and changes results.

        Places of images and teacher do not count, but a teacher from a file differs from an auto teacher.
        """
        free = FREE | (PLACES if (self.teacher == AUTO) == (other.teacher == AUTO) else PLACES - {"teacher"})
        mine = self.model_dump(mode="json", exclude=free)
        if (self.init is None) != (other.init is None):
            return [f"init: {self.init}, not {other.init}"]
        return differing(without_places(mine), without_places(other.model_dump(mode="json")))


def without_places(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with networks of a user's own, `path/to/file.py:build`, by their files' names: hashes are compared."""
    names = {key: settings[key] for key in ("student", "teacher_model") if ".py:" in str(settings.get(key))}
    return {**settings, **{key: re.split(r"[/\\]", str(name))[-1] for key, name in names.items()}}


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """`key: mine, not theirs` for each key of both mappings whose values differ."""
    return [f"{key}: {mine[key]}, not {theirs[key]}" for key in mine if key in theirs and mine[key] != theirs[key]]
