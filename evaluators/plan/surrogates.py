"""Surrogates for transfer attacks, trained on the spot if the user gives none."""

import hashlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from dgad_tk.artifacts.predictor import Predictor, load_safetensors
from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.common import cache_dir
from dgad_tk.config.training import TrainConfig
from dgad_tk.data import Dataset
from dgad_tk.distributed import by_leader, leaders, pick_device, world
from dgad_tk.methods import build_method
from dgad_tk.strangers.names import check_utf8
from dgad_tk.training.fit import fit
from dgad_tk.training.job import SILENT, Job, OnProgress, Watcher
from evaluators.plan.rows import Surrogate

MODELS = ("resnet8", "resnet20")
IMAGES = 5000
SECONDS = 60.0
EPOCHS = 15
"""Longest useful training. Slower machines stop after SECONDS, and use what they have."""


def made_on_the_spot(dataset: Dataset, *, on_progress: OnProgress | None = None) -> list[Surrogate]:
    """Two surrogates with standard training, a small and a larger one, cached by configuration and images.

    Under torchrun, all processes train them together, and each of them has to call this.

    How well they are trained depends on the speed of the machine: the SHA-256 of their weights goes into the results.

    Raises:
        UserError: the cache folder has a name that safetensors cannot open.
    """
    check_utf8(str(cache_dir()), "the cache folder", "set the environment variable DGAD_CACHE to another folder")
    if len(dataset.train) == 0:
        reason = f"'{dataset.name}' has no training images to make a surrogate from (--surrogate FILE needs none)"
        return [Surrogate(name, None, reason) for name in MODELS]
    return [Surrogate(name, _trained(name, dataset, on_progress)) for name in MODELS]


def _trained(name: str, dataset: Dataset, on_progress: OnProgress | None) -> Predictor:
    config = TrainConfig(
        dataset=dataset.name,
        method="standard",
        student=name,
        epochs=EPOCHS,
        batch_size=64,
        schedule="cosine",
        lr=0.05,
        limit_train=IMAGES,
        max_seconds=SECONDS,
        select_every=EPOCHS,
    ).resolved()
    question = f"{dataset.sha256} {config.to_yaml()}"
    key = hashlib.sha256(question.encode()).hexdigest()[:16]
    folder = RunFolder(cache_dir() / "surrogates" / f"{dataset.name}-{name}-{key}")
    if not leaders(folder.finished()):
        aside = RunFolder(Path(by_leader(lambda: _aside(name, folder, config))))
        try:
            method = build_method(config.method, config.method_options)
            device = pick_device(config.device)
            job = Job(config=config, method=method, dataset=dataset, folder=aside, device=device)
            watcher = Watcher(progress=on_progress) if on_progress and world().leads else SILENT
            fit(replace(job, role=f"surrogate {name}", watcher=watcher))
            by_leader(lambda: _take_name(aside.path, folder))
        finally:
            if world().leads:
                shutil.rmtree(aside.path, ignore_errors=True)
    return load_safetensors(folder.best)


def _aside(name: str, folder: RunFolder, config: TrainConfig) -> str:
    """A folder to train in, which is renamed later, so that two evaluations never write into the same one."""
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    aside = RunFolder(Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.path.parent)))
    config.save(aside.config)
    return str(aside.path)


def _take_name(aside: Path, folder: RunFolder) -> None:
    if folder.path.exists() and not folder.finished():
        shutil.rmtree(folder.path)  # cut short by an older version or by hand
    try:
        aside.rename(folder.path)
    except OSError:
        if not folder.finished():  # otherwise another process has finished one, which is as good
            raise
