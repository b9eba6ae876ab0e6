"""train(): from a config to a run folder.

The life of a run: `train` opens images and teacher and claims the folder (`claim`); what is to be trained is a `Job`.
`fit` goes through its epochs with a `Loop` (`epoch`), whose steps move a `Learner`. After each epoch it measures the
accuracies (`selection`) and saves what a later process needs to go on (`snapshot`).
"""

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
from dgad_tk.data.augment import chosen_augments
from dgad_tk.data.splits import grey, stretched, without_images
from dgad_tk.distributed import by_leader, from_all, joined, launched, leaders, pick_device
from dgad_tk.methods import build_method, find_method, typed_options
from dgad_tk.models.own import ONNX
from dgad_tk.strangers.names import check_utf8
from dgad_tk.teachers.opening import check_teacher, open_teacher
from dgad_tk.training.claim import Held, begin, check_claim, claimed
from dgad_tk.training.fit import fit
from dgad_tk.training.job import SILENT, Job, OnProgress, Start, Watcher, training_split
from dgad_tk.training.starting.first_weights import named_by_its_weights, start_from, try_first
from dgad_tk.training.starting.networks import check_networks, check_places, find_networks, frozen, handed, handed_name
from dgad_tk.training.starting.senseless import FROZEN_ANEW, check_batch_norms, check_moments

Opened = tuple[nn.Module, str]
"""A teacher in eval mode with frozen weights, and its name with its file's SHA-256."""


def train(
    config: TrainConfig,
    *,
    out: Path | None = None,
    resume: bool = False,
    student: nn.Module | None = None,
    teacher: Callable[[Dataset], Opened] | nn.Module | None = None,
    start: Callable[[Dataset], Start] | None = None,
    trust: bool = False,
    download: bool = False,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] = lambda line: None,
    on_stop: Callable[[], None] = lambda: None,
    on_folder: Callable[[RunFolder], None] = lambda folder: None,
) -> RunFolder:
    """Train a student. Its teacher is trained first if the method needs one and the config names none.

    Under torchrun every process calls this, and one of them writes.

    Args:
        config: what to train; need not be resolved. A network of a user's own that it names is imported and run.
        out: run folder; None takes the first free name under runs/.
        resume: go on from the last checkpoint in `out`.
        student: a network with weights to start from, in place of `config.student`; it is copied and stays as it is.
        teacher: a teacher, or what opens `config.teacher` if this package cannot read its format.
        start: makes the student of `config.init` if this package cannot read its format.
        trust: run the source code that the record of a teacher, or of weights to start from, names.
        download: fetch the dataset if it is not there.
        on_progress: called after each step and each epoch; keep it cheap.
        on_message: gets what a user should know, line by line.
        on_stop: called in the signal handler when somebody asks the run to end.
        on_folder: gets the run folder, once it belongs to this run.

    Returns:
        The run folder, with the best epoch in `best.safetensors`.

    Raises:
        UserError: bad config, unreadable data or teacher, `out` in use, a checkpoint that does not fit the config, or
            fewer images than the processes need.
        KeyboardInterrupt: on Ctrl-C or SIGTERM; the run is saved.
    """
    config = _naming(config.resolved(), student, teacher, graph=start is not None)
    config = _typed(named_by_its_weights(config, trust=trust) if start is None else config)
    method = build_method(config.method, config.method_options)
    first = None if student is None else handed(student)
    if student is not None and config.init is not None:
        raise UserError("the student was handed over, and init says where to start", hint="give one of them")
    if method.needs_teacher and config.teacher == AUTO and find_method(config.teacher_method).needs_teacher:
        raise UserError(
            f"teacher method '{config.teacher_method}' needs a teacher itself, so it cannot make one",
            hint="--teacher-method trades, or give --teacher FILE",
        )
    find_networks(config, drawn=first is None and start is None)
    chosen_augments(config.augment)
    if not resume:
        check_moments(config)
    for what, given_name in (("--out", out), ("--teacher", config.teacher)):
        check_utf8(str(given_name or ""), what)
    device = pick_device(config.device)
    told = Watcher(progress=on_progress or SILENT.progress, message=on_message, stopping=on_stop, folder=on_folder)
    watcher = told if launched().leads else SILENT
    say = watcher.message
    with joined(device) as here:
        _check_agreement(config)
        if out is not None:  # before the hours of work that come first
            by_leader(lambda: check_claim(RunFolder(out), config, resume=resume))
            if resume:
                by_leader(lambda: _check_places(config, out, needs_teacher=method.needs_teacher))
        images = partial(
            load_dataset,
            config.dataset,
            data_dir=config.data_dir,
            image_size=config.image_size,
            resize=config.resize,
            channels=config.channels,
        )
        by_leader(lambda: images(download=download) and None)  # first: the others find it downloaded and decoded
        dataset = images()
        _check_processes(config, dataset, device, here.size)
        for line in _doubts(config, dataset):
            say(f"warning: {line}")
        if not resume and (line := grey(dataset)):
            say(f"note: {line}")
        if config.init is not None:
            first = start(dataset) if start is not None else start_from(config, dataset, say)
        check_networks(config, dataset.shape, len(dataset.classes), drawn=first is None)
        if not resume:
            check_batch_norms(config, dataset.shape, len(dataset.classes), first)
        if config.freeze_bn and first is None:
            say(f"warning: {FROZEN_ANEW}")
        if first is not None and not resume:
            try_first(first, config, dataset, device, say)
        given = None
        if method.needs_teacher and config.teacher != AUTO:
            if isinstance(teacher, nn.Module):
                given = frozen(teacher)
            else:
                given = teacher(dataset) if teacher is not None else _teacher_from_weights(config, dataset, say, trust)
            if here.leads:
                check = check_teacher(given[0], dataset, device=device, name=given[1])
                for line in (check.describe(), *(f"warning: {doubt}" for doubt in check.warnings)):
                    say(line)
        with ExitStack() as stack:

            def claim() -> Held:
                folder = new_run_folder(config) if out is None else RunFolder(out)
                return stack.enter_context(claimed(folder, config, resume=resume))

            held = by_leader(claim)
            watcher.folder(held.folder)
            if not held.safe:
                say(f"note: no locks where '{held.folder.path}' lies: let no other process train there meanwhile")
            job = Job(
                config=config,
                method=method,
                dataset=dataset,
                folder=held.folder,
                device=device,
                start=first,
                watcher=watcher,
                still_ours=held.check,
            )
            if method.needs_teacher:
                module, name = given or open_teacher(_train_teacher(job, resume=resume), dataset, trust=True)
                job = replace(job, teacher=module, teacher_name=name)
            fit(job)
            return held.folder


def _doubts(config: TrainConfig, dataset: Dataset) -> list[str]:
    """Images that are not used, classes without any, channels that hardly vary: one sentence each."""
    found = [*dataset.notes]
    if lost := without_images(training_split(config, dataset), dataset.classes):
        found.append(lost + (f", with --limit-train {config.limit_train}" if config.limit_train else ""))
    if stretch := stretched(dataset):
        found.append(stretch)
    if config.normalize == "dataset" and (flat := dataset.flat_channels):
        found.append(
            f"channels that hardly vary over the training images: {', '.join(map(str, flat))} (from 0); "
            "normalize=dataset divides them by a grey level, 1/255, and not by their standard deviation"
        )
    return found


def _naming(
    config: TrainConfig,
    student: nn.Module | None,
    teacher: Callable[[Dataset], Opened] | nn.Module | None,
    *,
    graph: bool,
) -> TrainConfig:
    """The same config, in which modules that were handed over have their names, and so has a graph to start from.

    Raises:
        UserError: the config names another student than such a graph.
    """
    own = {} if student is None else {"student": handed_name(student)}
    if graph and config.init is not None:
        name = f"{ONNX}:{config.init.stem}"
        if config.student != name and "student" in config.model_fields_set and not config.student.startswith(ONNX):
            raise UserError(
                f"'{config.init}' is the student itself, and --student names another, {config.student}",
                hint="leave --student out; a network of that name starts from its own weights",
            )
        own = {"student": name} if "student" not in config.model_fields_set else {}
    own |= {"teacher": handed_name(teacher)} if isinstance(teacher, nn.Module) else {}
    return config.model_copy(update=own)


def _typed(config: TrainConfig) -> TrainConfig:
    """The same config with its methods' options read by their types, as a run folder keeps them."""
    own = {"method_options": typed_options(config.method, config.method_options)}
    if find_method(config.method).needs_teacher and config.teacher == AUTO:
        own["teacher_options"] = typed_options(config.teacher_method, config.teacher_options)
    return config.model_copy(update=own)


def _check_agreement(config: TrainConfig) -> None:
    """See that all processes were told to make the same run; a UserError in every process if not."""
    first, *others = from_all(config)
    for rank, other in enumerate(others, start=1):
        if differences := other.differences(first):
            raise UserError(
                f"process {rank} was given other settings than process 0: " + "; ".join(differences),
                hint="give all processes the same flags and variables, and name the run with --out",
            )


def _check_places(config: TrainConfig, out: Path, *, needs_teacher: bool) -> None:
    """See that the images and the teacher of a resumed run still lie where its config says."""
    if config.data_dir is not None and not os.path.exists(os.path.expanduser(config.data_dir)):
        raise UserError(
            f"the images of the run in '{out}' are not in '{config.data_dir}' any more",
            hint="say where they are now: --data-dir",
        )
    check_places(config, out, needs_teacher=needs_teacher)


def _check_processes(config: TrainConfig, dataset: Dataset, device: torch.device, processes: int) -> None:
    """See that each process gets two images of a batch (BatchNorm has no variance of one), and a GPU for sync_bn."""
    if config.accumulate > 1 and config.batch_size < 2 * processes * config.accumulate:
        shared = f", which {processes} processes share" if processes > 1 else ""
        raise UserError(
            f"accumulate {config.accumulate} leaves less than 2 images to a part of {config.batch_size}{shared}",
            hint="a smaller --accumulate, or a larger --batch-size",
        )
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


def _teacher_from_weights(config: TrainConfig, dataset: Dataset, say: Callable[[str], None], trust: bool) -> Opened:
    return open_teacher(
        Path(config.teacher),
        dataset,
        model=config.teacher_model,
        mean=config.teacher_mean,
        std=config.teacher_std,
        trust=trust,
        on_message=lambda line: say(f"note: {line}"),
    )


def _train_teacher(student: Job, *, resume: bool) -> Path:
    """Train the teacher of a run that was given none, or go on with it, in the student's folder; its weights."""
    config, folder = student.config.for_teacher(), student.folder.teacher
    method = build_method(config.method, config.method_options)

    def claim() -> None:  # the student's lock is held
        student.still_ours()
        begin(folder, config, resume=resume and folder.exists())

    by_leader(claim)
    fit(replace(student, config=config, method=method, folder=folder, role="teacher", start=None))
    leaders(None)  # wait until the leader has written them
    return folder.best
