"""Run folders: their names, their files, and which run is finished or newest.

runs/<dataset>-<method>-<student>[-N]/
    config.yaml         every setting, reloadable with --config
    metrics.jsonl       one line per epoch, and an "end" line when finished
    last.ckpt           what resuming needs
    best.safetensors    weights of the best epoch and their metadata record
    images.npz          up to 8 images of the last epoch's last step as the network saw them, and their adversarials
    report.html         the page for people, where `dgad train` or `write_run_page` wrote one
    tensorboard/        events, where TensorBoard is installed
    non-finite-batch.safetensors  what a step saw whose loss was NaN or infinite, and its weights
    teacher/            the same again, where the run trained its own teacher
"""

import json
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from dgad_tk.common import UserError, naming, written_aside
from dgad_tk.config.parsing import read_yaml, validated
from dgad_tk.config.training import TrainConfig

RUNS = Path("runs")


class RunFolder:
    """Paths and state of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.last = path / "last.ckpt"
        self.best = path / "best.safetensors"
        self.images = path / "images.npz"
        self.report = path / "report.html"
        self.non_finite = path / "non-finite-batch.safetensors"

    @property
    def teacher(self) -> "RunFolder":
        return RunFolder(self.path / "teacher")

    def exists(self) -> bool:
        return self.config.is_file()

    def read_config(self) -> TrainConfig:
        return validated(TrainConfig, read_yaml(self.config), str(self.config))

    def records(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl up to the first that is not whole, which a killed process may leave."""
        found: list[dict[str, Any]] = []
        if self.metrics.is_file():
            with suppress(json.JSONDecodeError):
                for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
                    record = json.loads(line)
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
        with naming(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def cut_back(self, epochs: int) -> None:
        """Delete the lines of epochs from `epochs` on, which a resumed run will write again."""
        kept = [each for each in self.records() if each["event"] == "epoch" and each.get("epoch", epochs) < epochs]
        with written_aside(self.metrics) as aside:
            aside.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


def new_run_folder(config: TrainConfig, root: Path = RUNS) -> RunFolder:
    """Make a folder for a run of `config` under the first free name. Each of several processes gets its own."""
    name = f"{config.dataset}-{config.method}-{config.student}".replace(":", "-")  # no colon in a name on Windows
    path, numbers = root / name, count(2)
    while True:
        try:
            path.mkdir(parents=True)
            return RunFolder(path)
        except FileExistsError:
            path = root / f"{name}-{next(numbers)}"


def newest_run(root: Path = RUNS, *, finished: bool) -> RunFolder:
    """The finished or unfinished run under `root` that was written to last; UserError where there is none."""
    kind = "finished" if finished else "unfinished"
    folders = [RunFolder(path) for path in root.glob("*/") if RunFolder(path).exists()]
    fitting = [folder for folder in folders if folder.finished() == finished]
    if not fitting:
        raise UserError(
            f"no {kind} run under '{root}'",
            hint="`dgad train` makes one" if finished else "start it without --resume, or name it with --out",
        )
    return max(fitting, key=RunFolder.written)


def weights_of(source: Path) -> Path:
    """The best.safetensors of a run folder, or `source` itself where that is a file; UserError where it is neither."""
    path = RunFolder(source).best if source.is_dir() else source
    if path.is_file():
        return path
    if source.is_dir():
        hint = "give a run folder of `dgad train` that got past epoch 1"
        raise UserError(f"'{source}' holds no best.safetensors", hint=hint)
    raise UserError(f"no such file or run folder: '{source}'", hint="`ls runs` shows what there is")
