"""fit(): the training loop. Every method, one loop, one student; resumes to the same weights bit for bit."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from dgad_tk.artifact import Artifact, tool_versions
from dgad_tk.checkpoint import load_state, save_state, save_weights
from dgad_tk.common import UserError, lookup, sha256_file
from dgad_tk.config import TrainConfig
from dgad_tk.data import Dataset, load_dataset
from dgad_tk.draws import Draws
from dgad_tk.epoch import Epoch, OnProgress
from dgad_tk.fold import folded
from dgad_tk.methods import METHODS, Method, build_method
from dgad_tk.models import MODELS, build_model
from dgad_tk.runs import RunFolder, claim, locked, new_run_folder
from dgad_tk.selection import accuracies
from dgad_tk.teachers import open_teacher


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
    with locked(folder):
        teacher, teacher_name = given or (None, "")
        if method.needs_teacher and given is None:
            weights = make_teacher(config, dataset, folder.teacher, resume=resume, on_progress=on_progress)
            teacher, teacher_name = open_teacher(weights, dataset)
        return fit(config, method, dataset, folder, teacher=teacher, teacher_name=teacher_name, on_progress=on_progress)


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
    loop = Epoch(
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


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        UserError: cuda was asked for and is not there.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("--device cuda: this torch sees no GPU", hint="--device auto takes the CPU where there is none")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


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
