"""Run folders: what they are called, which is finished, which is newest.

runs/<dataset>-<method>-<student>[-N]/
    config.yaml         every setting, reloadable with --config
    metrics.jsonl       one line an epoch, and an "end" line when finished
    last.ckpt           what resuming needs
    best.safetensors    weights of the best epoch and their metadata record
    tensorboard/        events, where TensorBoard is installed
    teacher/            the same again, where the run trained its own teacher
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgad_tk.common import UserError, written_aside
from dgad_tk.config import TrainConfig, read_yaml, validated

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

RUNS = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """Paths and state of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def last(self) -> Path:
        return self.path / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def teacher(self) -> "RunFolder":
        return RunFolder(self.path / "teacher")

    def exists(self) -> bool:
        return self.config.is_file()

    def read_config(self) -> TrainConfig:
        return validated(TrainConfig, read_yaml(self.config), str(self.config))

    def records(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl, up to the first that is not whole: a killed process may leave half of one."""
        found: list[dict[str, Any]] = []
        if self.metrics.is_file():
            for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    break
                if not isinstance(record, dict) or "event" not in record:
                    break
                found.append(record)
        return found

    def finished(self) -> bool:
        records = self.records()
        return self.best.is_file() and bool(records) and records[-1]["event"] == "end"

    def written(self) -> int:
        """When the run was last written to, in nanoseconds since the epoch."""
        return max(path.stat().st_mtime_ns for path in (self.config, self.metrics) if path.exists())

    def append(self, record: dict[str, Any]) -> None:
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def cut_back(self, epochs: int) -> None:
        """Forget what metrics.jsonl says of epochs from `epochs` on: a resumed run will write them again."""
        kept = [
            record for record in self.records() if record["event"] == "epoch" and record.get("epoch", epochs) < epochs
        ]
        with written_aside(self.metrics) as aside:
            aside.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


def _numbered(base: Path) -> Iterator[Path]:
    yield base
    number = 2
    while True:
        yield base.with_name(f"{base.name}-{number}")
        number += 1


def new_run_folder(config: TrainConfig, root: Path = RUNS) -> RunFolder:
    """The first free name for a run of `config`."""
    name = f"{config.dataset}-{config.method}-{config.student}".replace(":", "-")  # no colon in a name on Windows
    base = root / name
    return RunFolder(next(path for path in _numbered(base) if not path.exists()))


def newest_run(root: Path = RUNS, *, finished: bool, prefix: str = "") -> RunFolder:
    """The run folder under `root` that was written to last.

    Raises:
        UserError: there is none.
    """
    kind = "finished" if finished else "unfinished"
    folders = [RunFolder(path) for path in root.glob(f"{prefix}*/") if RunFolder(path).exists()]
    fitting = [folder for folder in folders if folder.finished() == finished]
    if not fitting:
        raise UserError(
            f"no {kind} run under '{root}'" + (f" called {prefix}" if prefix else ""),
            hint="`dgad train` makes one" if finished else "start it without --resume, or name it with --out",
        )
    return max(fitting, key=RunFolder.written)


def weights_of(source: Path) -> Path:
    """The .safetensors file behind a run folder or a file's path.

    Raises:
        UserError: neither.
    """
    if source.is_dir():
        folder = RunFolder(source)
        if not folder.best.is_file():
            raise UserError(
                f"'{source}' holds no best.safetensors",
                hint="give a run folder of `dgad train` that got past epoch 1",
            )
        return folder.best
    if not source.is_file():
        raise UserError(f"no such file or run folder: '{source}'", hint="`ls runs` shows what there is")
    return source


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
        if folder.path.exists() and any(not path.name.startswith(".config-") for path in folder.path.iterdir()):
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


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Keep a run folder to this process. The system lets go of it when the process ends, however it ends.

    Raises:
        UserError: another process trains there.
    """
    if fcntl is None:
        yield
        return
    with (folder.path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in '{folder.path}'", hint="wait for it, or choose another --out"
            ) from None
        yield
