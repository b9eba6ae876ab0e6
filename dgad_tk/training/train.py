"""train(): from a config to a run folder; the teacher first, where the method needs one."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from dgad_tk.artifacts.runs import RunFolder, new_run_folder
from dgad_tk.common import UserError
from dgad_tk.config.training import AUTO, TrainConfig
from dgad_tk.data import Dataset, load_dataset
from dgad_tk.data.splits import without_images
from dgad_tk.distributed import by_leader, from_all, joined, launched, leaders
from dgad_tk.methods import build_method, find_method, typed_options
from dgad_tk.models import find_model
from dgad_tk.strangers.names import check_utf8
from dgad_tk.teachers.opening import check_teacher, open_teacher
from dgad_tk.training.claim import check_claim, claimed
from dgad_tk.training.epoch import OnProgress
from dgad_tk.training.fit import Job, fit, training_split
from dgad_tk.training.origin import check_finished

Opened = tuple[nn.Module, str]
"""A teacher in eval mode with frozen weights, and its name with its file's SHA-256."""


def train(
    config: TrainConfig,
    *,
    out: Path | None = None,
    resume: bool = False,
    teacher: Callable[[Dataset], Opened] | None = None,
    download: bool = False,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
    on_stop: Callable[[], None] = lambda: None,
    on_folder: Callable[[RunFolder], None] = lambda folder: None,
) -> RunFolder:
    """Train a student, and first its teacher where the method needs one and the config gives none.

    Under torchrun every process calls this, and one of them writes.

    Args:
        config: what to train; need not be resolved.
        out: run folder; None takes the first free name under runs/.
        resume: go on from the last checkpoint in `out`.
        teacher: opens a teacher of a format that is not read here; `config.teacher` says where it comes from.
        download: fetch the dataset where it is not there yet.
        on_progress: called often; keep it cheap.
        on_message: told what a user should know, line by line.
        on_stop: called in the signal handler when somebody asks the run to end.
        on_folder: told the run folder, once it is this run's.

    Returns:
        The run folder, with the best epoch in `best.safetensors`.

    Raises:
        UserError: bad config, unreadable data or teacher, `out` in use, a checkpoint that does not fit the config, or
            fewer images than the processes need.
        KeyboardInterrupt: on Ctrl-C or SIGTERM; the run is saved.
    """
    config = _typed(config.resolved())
    method = build_method(config.method, config.method_options)
    find_model(config.student)
    if method.needs_teacher and config.teacher == AUTO:  # hours before it is needed
        find_model(config.teacher_model)
        if find_method(config.teacher_method).needs_teacher:
            raise UserError(
                f"teacher method '{config.teacher_method}' needs a teacher itself, so it cannot make one",
                hint="--teacher-method trades, or give --teacher FILE",
            )
    for what, given_name in (("--out", out), ("--teacher", config.teacher)):
        check_utf8(str(given_name or ""), what)
    device = pick_device(config.device)
    say = on_message if on_message and launched().leads else lambda line: None
    with joined(device) as here:
        _agreed(config)
        if out is not None:  # before the work that it takes to find it out
            by_leader(lambda: check_claim(RunFolder(out), config, resume=resume))
            if resume:
                by_leader(lambda: _see_places(config, out, needs_teacher=method.needs_teacher))
        images = partial(load_dataset, config.dataset, data_dir=config.data_dir, image_size=config.image_size)
        by_leader(lambda: images(download=download) and None)  # first: the others find it downloaded and decoded
        dataset = images()
        _check_processes(config, dataset, device, here.size)
        for line in _doubts(config, dataset):
            say(f"warning: {line}")
        given = _given_teacher(config, dataset, teacher, say) if method.needs_teacher else None
        if given is not None and here.leads:
            summary, doubts = check_teacher(given[0], dataset, device=device, name=given[1])
            for line in (summary, *(f"warning: {doubt}" for doubt in doubts)):
                say(line)
        with ExitStack() as stack:
            held = by_leader(lambda: stack.enter_context(claimed(_folder(config, out), config, resume=resume)))
            folder = held.folder
            on_folder(folder)
            if not held.safe:
                say(f"note: no locks where '{folder.path}' lies: let no other process train there meanwhile")
            job = Job(
                config=config,
                method=method,
                dataset=dataset,
                folder=folder,
                device=device,
                on_progress=on_progress,
                on_stop=on_stop,
                still_ours=held.check,
            )
            if method.needs_teacher:
                module, name = given or open_teacher(_make_teacher(job, resume=resume), dataset)
                job = replace(job, teacher=module, teacher_name=name)
            fit(job)
            return folder


def _doubts(config: TrainConfig, dataset: Dataset) -> list[str]:
    """What of the data is not used, or cannot be used as it seems: one sentence per finding."""
    found = [*dataset.notes]
    if lost := without_images(training_split(config, dataset), dataset.classes):
        found.append(lost + (f", with --limit-train {config.limit_train}" if config.limit_train else ""))
    if config.normalize == "dataset" and (flat := dataset.flat_channels):
        found.append(
            f"channels that hardly vary over the training images: {', '.join(map(str, flat))} (from 0); "
            "normalize=dataset divides them by a grey level, 1/255, and not by their standard deviation"
        )
    return found


def _typed(config: TrainConfig) -> TrainConfig:
    """The same run with its methods' options read by their types, as a run folder keeps them."""
    own = {"method_options": typed_options(config.method, config.method_options)}
    if find_method(config.method).needs_teacher and config.teacher == AUTO:
        own["teacher_options"] = typed_options(config.teacher_method, config.teacher_options)
    return config.model_copy(update=own)


def _agreed(config: TrainConfig) -> None:
    """See that all processes were told to make the same run.

    Raises:
        UserError: in every process, where they were not.
    """
    first, *others = from_all(config)
    for rank, other in enumerate(others, start=1):
        if differences := other.differences(first):
            raise UserError(
                f"process {rank} was given other settings than process 0: " + "; ".join(differences),
                hint="give all processes the same flags and variables, and name the run with --out",
            )


def _see_places(config: TrainConfig, out: Path, *, needs_teacher: bool) -> None:
    """See that what a run is resumed with is still where the run was told that it is.

    Raises:
        UserError: it is not.
    """
    if config.data_dir is not None and not os.path.exists(os.path.expanduser(config.data_dir)):
        raise UserError(
            f"the images of the run in '{out}' are not in '{config.data_dir}' any more",
            hint="say where they are now: --data-dir",
        )
    if needs_teacher and config.teacher != AUTO and not Path(config.teacher).exists():
        raise UserError(
            f"the teacher of the run in '{out}' is not at '{config.teacher}' any more: no such file or run folder",
            hint="say where it is now: --teacher",
        )


def _folder(config: TrainConfig, out: Path | None) -> RunFolder:
    return RunFolder(out) if out is not None else new_run_folder(config)


def _check_processes(config: TrainConfig, dataset: Dataset, device: torch.device, processes: int) -> None:
    """See that every process gets images of a batch, and more than the one that has no variance for BatchNorm.

    Raises:
        UserError: it does not, or `sync_bn` is on without GPUs: torch's SyncBatchNorm knows no other device.
    """
    images = min(config.batch_size, config.limit_train or len(dataset.train), len(dataset.train))
    if images < 2 * processes:
        raise UserError(
            f"{processes} processes share batches of {images} images, and each needs 2",
            hint="a larger --batch-size, more images, or fewer processes",
        )
    if config.sync_bn and processes > 1 and device.type != "cuda":
        raise UserError(
            f"sync_bn needs GPUs, and these {processes} processes are on the {device.type}",
            hint="leave sync_bn out: each process then normalises with its own part of the batch",
        )


def _given_teacher(
    config: TrainConfig,
    dataset: Dataset,
    opener: Callable[[Dataset], Opened] | None,
    say: Callable[[str], None],
) -> Opened | None:
    if config.teacher == AUTO:
        return None
    if opener is not None:
        return opener(dataset)
    return open_teacher(
        Path(config.teacher),
        dataset,
        model=config.teacher_model,
        mean=config.teacher_mean,
        std=config.teacher_std,
        on_message=lambda line: say(f"note: {line}"),
    )


def _make_teacher(student: Job, *, resume: bool) -> Path:
    """Train the teacher of a run that was given none, or go on with it; its weights."""
    config, folder = student.config.for_teacher(), student.folder.teacher
    method = build_method(config.method, config.method_options)
    by_leader(lambda: _claim_teacher(folder, config, student.still_ours, resume=resume))
    if leaders(folder.finished()):
        by_leader(lambda: check_finished(config, folder, student.dataset))
    else:
        fit(replace(student, config=config, method=method, folder=folder, role="teacher"))
    leaders(None)  # the leader has written them
    return folder.best


def _claim_teacher(folder: RunFolder, config: TrainConfig, still_ours: Callable[[], None], *, resume: bool) -> None:
    """Begin the teacher's run inside of the student's, whose lock is held, or see that it is the one to go on with."""
    still_ours()
    for left in folder.path.glob(".config-*"):
        left.unlink()  # of a process that was killed while it wrote
    check_claim(folder, config, resume=resume and folder.exists())
    if not folder.exists():
        config.save(folder.config)


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one; torchrun's processes take one each.

    Raises:
        UserError: cuda was asked for and is not there, or there are more processes than GPUs.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            "device is cuda: this torch sees no GPU", hint="--device auto takes the CPU where there is none"
        )
    if not available or name == "cpu":
        return torch.device("cpu")
    here = launched()
    if here.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {here.local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}",
            hint="torchrun --nproc-per-node takes as many as there are GPUs",
        )
    return torch.device("cuda", here.local_rank)
