"""fit(): the training loop. Every method, one loop, one student; resumes to the same weights bit for bit."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dgad_tk.artifact import Artifact, tool_versions
from dgad_tk.checkpoint import load_model, load_state, save_state, save_weights
from dgad_tk.common import UserError, lookup, sha256_file
from dgad_tk.config import ThreatModel, TrainConfig
from dgad_tk.data import Augmentation, Dataset, Split, load_dataset
from dgad_tk.data.augment import augment, to_float
from dgad_tk.draws import Draws
from dgad_tk.fold import folded
from dgad_tk.inner_max import inner_max, start_point
from dgad_tk.losses import cross_entropy
from dgad_tk.methods import METHODS, Batch, Method, build_method
from dgad_tk.models import MODELS, build_model
from dgad_tk.runs import RunFolder, new_run_folder, weights_of

TEACHER_SUFFIXES = (".safetensors",)


@dataclass(frozen=True)
class Progress:
    """Where a run stands, handed to `on_progress` after each step and, with `metrics`, after each epoch."""

    role: str
    epoch: int
    epochs: int
    step: int
    steps: int
    terms: dict[str, float]
    samples_per_second: float
    metrics: dict[str, float] | None = None


OnProgress = Callable[[Progress], None]


def train(
    config: TrainConfig,
    *,
    out: Path | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
) -> RunFolder:
    """Train a student, and first its teacher where the method needs one and the config gives none.

    Args:
        config: what to train; need not be resolved.
        out: run folder; None takes the first free name under runs/.
        resume: go on from the last checkpoint in `out`.
        on_progress: called often; keep it cheap.

    Returns:
        The run folder, with the best epoch in `best.safetensors`.

    Raises:
        UserError: bad config, unreadable data or teacher, `out` in use, or a checkpoint that does not fit the config.
    """
    config = config.resolved()
    method = build_method(config.method, config.method_options)
    lookup(MODELS, config.student, "model")
    if method.needs_teacher and config.teacher == "auto":  # hours before it is needed
        lookup(MODELS, config.teacher_model, "model")
        if lookup(METHODS, config.teacher_method, "method").needs_teacher:
            raise UserError(
                f"teacher method '{config.teacher_method}' needs a teacher itself, so it cannot make one",
                hint="--teacher-method trades, or give --teacher FILE",
            )
    pick_device(config.device)
    dataset = load_dataset(config.dataset, data_dir=config.data_dir, image_size=config.image_size)
    folder = RunFolder(out) if out else new_run_folder(config)
    given = open_teacher(Path(config.teacher), dataset) if method.needs_teacher and config.teacher != "auto" else None
    claim(folder, config, resume=resume)
    teacher, teacher_name = given or (None, "")
    if method.needs_teacher and given is None:
        weights = make_teacher(config, dataset, folder.teacher, resume=resume, on_progress=on_progress)
        teacher, teacher_name = open_teacher(weights, dataset)
    return fit(config, method, dataset, folder, teacher=teacher, teacher_name=teacher_name, on_progress=on_progress)


def claim(folder: RunFolder, config: TrainConfig, *, resume: bool) -> None:
    """Make the run folder this run's own.

    Raises:
        UserError: it holds another run, or a run of another config.
    """
    blocking = next((path for path in [folder.path, *folder.path.parents] if path.exists() and not path.is_dir()), None)
    if blocking:
        raise UserError(
            f"the run folder '{folder.path}' cannot be made: '{blocking}' is a file", hint="choose another --out"
        )
    if not folder.exists():
        if resume:
            raise UserError(f"nothing to resume in '{folder.path}'", hint="start the run without --resume")
        if folder.path.exists() and any(folder.path.iterdir()):
            raise UserError(f"'{folder.path}' is not empty and not a run folder", hint="choose another --out")
        folder.path.mkdir(parents=True, exist_ok=True)
        config.save(folder.config)
        return
    if not resume:
        raise UserError(f"'{folder.path}' already holds a run", hint="add --resume to go on, or choose another --out")
    if differences := config.differences(folder.read_config()):
        raise UserError(
            f"the run in '{folder.path}' has another config: " + "; ".join(differences),
            hint="resume with the settings it was started with, or start a new run",
        )


def make_teacher(
    config: TrainConfig, dataset: Dataset, folder: RunFolder, *, resume: bool, on_progress: OnProgress | None
) -> Path:
    """Train the teacher of a run that was given none, or go on with it; its weights.

    Raises:
        UserError: its method needs a teacher itself, or its folder holds another run.
    """
    run = config.for_teacher()
    method = build_method(run.method, run.method_options)
    if not folder.finished():
        claim(folder, run, resume=resume and folder.exists())
        fit(run, method, dataset, folder, role="teacher", on_progress=on_progress)
    return folder.best


def open_teacher(source: Path, dataset: Dataset) -> tuple[nn.Module, str]:
    """The teacher in a weights file or run folder, in eval mode with frozen weights, and `name sha256` of it.

    Raises:
        UserError: it cannot be read, or was made for other images or classes.
    """
    weights = weights_of(source)
    if weights.suffix not in TEACHER_SUFFIXES:
        raise UserError(
            f"cannot read '{weights}' as a teacher: expected {' or '.join(TEACHER_SUFFIXES)}",
            hint="a run folder or best.safetensors of `dgad train` can teach",
        )
    teacher, artifact = load_model(weights)
    if artifact.input_shape[0] != dataset.shape[0]:
        raise UserError(
            f"the teacher takes {artifact.input_shape[0]} channels, '{dataset.name}' has {dataset.shape[0]}",
            hint="train a teacher on this dataset: --teacher auto",
        )
    if artifact.classes != dataset.classes:
        raise UserError(
            f"the teacher knows {len(artifact.classes)} classes ({', '.join(artifact.classes[:5])}, ...), "
            f"'{dataset.name}' has {len(dataset.classes)} ({', '.join(dataset.classes[:5])}, ...)",
            hint="train a teacher on this dataset: --teacher auto",
        )
    return teacher.eval().requires_grad_(False), f"{artifact.model} {sha256_file(weights)}"


def fit(
    config: TrainConfig,
    method: Method,
    dataset: Dataset,
    folder: RunFolder,
    *,
    teacher: nn.Module | None = None,
    teacher_name: str = "",
    role: str = "student",
    on_progress: OnProgress | None = None,
) -> RunFolder:
    """Train one network into `folder`, from its last checkpoint if there is one.

    Args:
        config: resolved.
        teacher: frozen, in eval mode.
        role: what to call the network in progress messages.

    Raises:
        UserError: the loss is not finite, or the checkpoint cannot be read.
    """
    if folder.finished():
        return folder
    device = pick_device(config.device)
    draws = Draws(config.seed)
    split = dataset.train.subset(config.limit_train) if config.limit_train else dataset.train
    mean, std = dataset.statistics() if config.normalize == "dataset" else ((), ())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # torch's initialisers know no other source
        student = build_model(
            config.student, in_channels=dataset.shape[0], classes=len(dataset.classes), mean=mean, std=std
        )
    student.to(device)
    if teacher is not None:
        teacher = folded(teacher.to(device))
    optimizer = torch.optim.SGD(
        student.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
    )
    state = _State()
    origin = {"teacher": teacher_name, "dataset": dataset.sha256}
    if folder.last.is_file():
        state = _restore(folder, student, optimizer, origin)
    folder.cut_back(state.epoch)
    for left in [*folder.path.glob(".last-*"), *folder.path.glob(".best-*")]:
        left.unlink()  # of a process that was killed while it wrote
    loop = _Epoch(
        config,
        method,
        student,
        teacher,
        optimizer,
        split,
        dataset.spec.augmentation,
        draws,
        device,
        role,
        on_progress,
    )
    selection = dataset.val if config.select_on == "val" else dataset.test

    while state.epoch < config.epochs and not _out_of_time(config, state):
        begun = time.perf_counter()
        metrics = loop.run(state.epoch)
        last = state.epoch + 1 == config.epochs or _out_of_time(config, state, begun)
        if last or (state.epoch + 1) % config.select_every == 0:
            clean, robust = accuracies(student, selection, config.attack, draws, device=device)
            metrics |= {f"{config.select_on}_clean": clean, f"{config.select_on}_robust": robust}
            score = (clean, robust) if method.selected_by == "clean" else (robust, clean)
            if score > state.best_score:
                state = replace(state, best_score=score, best_epoch=state.epoch, best_clean=clean, best_robust=robust)
                artifact = _describe(config, dataset, method, state, teacher_name, mean, std, len(selection))
                save_weights(folder.best, student, artifact)
        seconds = time.perf_counter() - begun
        folder.append({"event": "epoch", "epoch": state.epoch, **metrics, "seconds": round(seconds, 3)})
        if on_progress:
            on_progress(replace(loop.progress, metrics=metrics))
        state = replace(state, epoch=state.epoch + 1, seconds=state.seconds + seconds)
        # Written last: it names the best weights, which are therefore there already.
        save_state(
            folder.last,
            {
                "student": student.state_dict(),
                "optimizer": optimizer.state_dict(),
                "state": vars(state),
                "origin": origin,
                "best_sha256": sha256_file(folder.best) if folder.best.is_file() else "",
            },
        )
    folder.append({"event": "end", "epoch": state.epoch, "best_epoch": state.best_epoch, "seconds": state.seconds})
    return folder


@dataclass(frozen=True)
class _State:
    """What a checkpoint holds beside tensors. Draws need no state: they are functions of epoch and image."""

    epoch: int = 0
    best_score: tuple[float, float] = (-1.0, -1.0)
    best_epoch: int = -1
    best_clean: float = 0.0
    best_robust: float = 0.0
    seconds: float = 0.0


def _restore(folder: RunFolder, student: nn.Module, optimizer: torch.optim.Optimizer, origin: dict[str, str]) -> _State:
    """Put a run back to its last checkpoint.

    Raises:
        UserError: the checkpoint is damaged, or was made with another teacher or other images.
    """
    saved = load_state(folder.last, ("student", "optimizer", "state", "origin", "best_sha256"))
    for what, sha in origin.items():
        if saved["origin"].get(what) != sha:
            raise UserError(
                f"the run in '{folder.path}' was begun with another {what}: {saved['origin'].get(what)}, not {sha}",
                hint=f"put the old {what} back, or start a new run",
            )
    if saved["best_sha256"] and not folder.best.is_file():
        raise UserError(f"'{folder.best}' is gone, and the run needs it", hint="start a new run")
    try:
        student.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
        return _State(**saved["state"])
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"'{folder.last}' does not fit this run: {reason}", hint="start a new run") from None


def _out_of_time(config: TrainConfig, state: _State, begun: float | None = None) -> bool:
    running = 0.0 if begun is None else time.perf_counter() - begun
    return config.max_seconds is not None and state.seconds + running >= config.max_seconds


@dataclass
class _Epoch:
    """One pass over the training images."""

    config: TrainConfig
    method: Method
    student: nn.Module
    teacher: nn.Module | None
    optimizer: torch.optim.Optimizer
    split: Split
    augmentation: Augmentation
    draws: Draws
    device: torch.device
    role: str
    on_progress: OnProgress | None

    def run(self, epoch: int) -> dict[str, float]:
        """Train for one epoch; mean of each loss term and the accuracy on what was trained on."""
        config = self.config
        batches = list(
            batch_positions(self.draws.permutation("order", len(self.split), epoch=epoch), config.batch_size)
        )
        self.student.train()
        totals: dict[str, float] = {}
        seen, begun = 0, time.perf_counter()
        for number, positions in enumerate(batches):
            rate = learning_rate(config, epoch, (epoch + number / len(batches)) / config.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            found = self._step(positions, epoch)
            if not math.isfinite(found["loss"]):
                raise UserError(
                    f"{self.role}: the loss became {found['loss']} in epoch {epoch + 1}, step {number + 1}",
                    hint="lower the learning rate: --set lr=0.01",
                )
            seen += len(positions)
            for name, value in found.items():
                totals[name] = totals.get(name, 0.0) + value * len(positions)
            means = {name: total / seen for name, total in totals.items()}
            pace = seen / (time.perf_counter() - begun)
            self.progress = Progress(self.role, epoch, config.epochs, number + 1, len(batches), means, pace)
            if self.on_progress:
                self.on_progress(self.progress)
        return {"lr": rate, **means, "samples_per_second": round(pace, 1)}

    def _step(self, positions: NDArray[np.int64], epoch: int) -> dict[str, float]:
        images, labels, index = fetch(self.split, positions, self.device)
        x = augment(images, augmentation=self.augmentation, draws=self.draws, index=index, epoch=epoch)
        noise = partial(draw_noise, self.draws, "attack", x.shape[1:], index, epoch)
        with autocast(self.config, self.device):
            step = self.method.step(
                self.student,
                self.teacher,
                Batch(x, labels, noise, self.config.batch_size),
                self.config.attack,
            )
        self.optimizer.zero_grad(set_to_none=True)
        step.loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        accuracy = (step.logits.argmax(dim=1) == labels).float().mean()
        names = ["loss", "accuracy", *step.terms]
        values = torch.stack([step.loss.detach(), accuracy, *step.terms.values()]).tolist()  # one wait for the device
        return dict(zip(names, values, strict=True))


def batch_positions(order: Tensor, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Cut an epoch's order into batches. The last may be short, but a single left-over image joins the batch before:
    alone it has no variance for BatchNorm where the feature map has shrunk to one pixel."""
    positions = order.numpy()
    ends = [*range(batch_size, len(positions), batch_size), len(positions)]
    if len(ends) > 1 and ends[-1] - ends[-2] == 1:
        del ends[-2]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        yield positions[start:end]


def learning_rate(config: TrainConfig, epoch: int, progress: float) -> float:
    """The rate for `epoch` (from 0); `progress` is the share of the whole run that lies behind."""
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    passed = sum(epoch >= round(milestone * config.epochs) for milestone in config.milestones)
    return config.lr * 0.1**passed


def draw_noise(draws: Draws, purpose: str, shape: torch.Size, index: Tensor, epoch: int, kind: str) -> Tensor:
    """Start noise of an attack, `(len(index), *shape)`: a function of (seed, purpose, epoch, dataset index)."""
    if kind == "normal":
        return draws.normal(purpose, tuple(shape), index=index, epoch=epoch)
    return 2 * draws.uniform(purpose, tuple(shape), index=index, epoch=epoch) - 1


def accuracies(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    draws: Draws,
    *,
    device: torch.device,
    batch_size: int = 256,
) -> tuple[float, float]:
    """Clean accuracy and accuracy under PGD (cross-entropy, uniform start) with `threat.steps` steps of eps / 4.

    The model is used in eval mode and left as it is. The start noise is the same at every call, so that epochs compare.
    """
    model = folded(model)
    threat = ThreatModel.of(threat.norm, threat.eps, threat.steps)
    clean = robust = 0
    for start in range(0, len(split), batch_size):
        positions = np.arange(start, min(start + batch_size, len(split)))
        images, labels, index = fetch(split, positions, device)
        x = to_float(images)
        noise = partial(draw_noise, draws, "selection", x.shape[1:], index, 0)
        begin = start_point(x, threat, "uniform", noise, clip=True)
        x_adv = inner_max(lambda z, y=labels: cross_entropy(model(z), y), x, begin, threat)  # type: ignore[misc]
        with torch.no_grad():
            right = model(x).argmax(dim=1) == labels
            clean += int(right.sum())
            robust += int((right & (model(x_adv).argmax(dim=1) == labels)).sum())
    return clean / len(split), robust / len(split)


def fetch(split: Split, positions: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 images `(N, C, H, W)`, labels and dataset indices of `positions`, on `device`."""
    images = torch.from_numpy(split.take(positions)).to(device, non_blocking=True)
    labels = torch.from_numpy(split.labels[positions]).to(device, non_blocking=True)
    return images, labels, torch.from_numpy(split.index[positions]).to(device, non_blocking=True)


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        UserError: cuda was asked for and is not there.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("--device cuda: this torch sees no GPU", hint="--device auto takes the CPU where there is none")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where the config asks for it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")


def _describe(
    config: TrainConfig,
    dataset: Dataset,
    method: Method,
    state: _State,
    teacher_name: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    selection_size: int,
) -> Artifact:
    return Artifact(
        model=config.student,
        classes=dataset.classes,
        input_shape=dataset.shape,
        dataset=dataset.name,
        dataset_options=dataset.options,
        method=config.method,
        teacher=teacher_name,
        threat={} if config.method == "standard" else config.attack.model_dump(),
        normalize={"mean": list(mean), "std": list(std)} if mean else {},
        training={
            "epochs": config.epochs,
            "best_epoch": state.best_epoch + 1,
            "seed": config.seed,
            "limit_train": config.limit_train,
            "method_options": config.method_options,
            "selected_on": config.select_on,
            "selected_by": method.selected_by,
            "selection_images": selection_size,
            "selection_threat": config.attack.model_dump(),
            "clean_accuracy": state.best_clean,
            "robust_accuracy": state.best_robust,
            "dataset_sha256": dataset.sha256,
        },
        versions=tool_versions(),
    )
