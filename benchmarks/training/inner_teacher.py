"""What the teacher in the attack, the add-ons and the averages of weights are worth: the same teacher, several seeds.

    python benchmarks/training/inner_teacher.py --out runs/inner/digits
    python benchmarks/training/inner_teacher.py --group extras --out runs/inner/digits
    python benchmarks/training/inner_teacher.py --dataset fashion-mnist --data-dir /usr/share/datasets/fashion-mnist \
        --limit-train 10000 --epochs 6 --seeds 0,1,2 --out runs/inner/fashion

`teacher` (the default group) trains `dgad`, `adaad` and `adaad+igdm`, each with the teacher asked exactly, linearised
and once; `extras` compares AWP, EMA, SWA, `+saad`, `+classwise` and `+igdm` with the same method without them, the
teacher linearised in both; what both groups have is trained once. For each seed a teacher is trained first, as
`dgad train` without --teacher does, and all students of that seed learn from it. Then AutoAttack attacks the student's
best weights on the test images, by `dgad attack`, whose judge is the file's own runtime.

Every training and every attack is a process of its own: `dgad train` and `dgad attack`, which go on where they were
cut off. So the same command goes on, after a kill too; --minutes begins nothing new after that time, and --table prints
what is there. Each finished student is a JSON file in `--out/results`, all of them `--out/results.json`, the table
`--out/table.md`. A difference is the mean over the seeds, paired by seed, with Student's interval of 95 %; `images` are
the images of all seeds that only one of the two holds. Seconds are a timing only if nothing else ran.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.common import write_json
from dgad_tk.config.training import TrainConfig

KINDS = ("exact", "linear", "none")


@dataclass(frozen=True)
class Variant:
    """A way to train a student.

    Attributes:
        method: as `--method` names it.
        settings: texts for `--set`.
        reference: the variant that it is compared with; empty for one that others are compared with.
    """

    method: str
    settings: dict[str, str] = field(default_factory=dict)
    reference: str = ""


def asked(method: str, kind: str) -> Variant:
    settings = {f"{method.partition('+')[0]}.teacher_in_attack": kind}
    return Variant(method, settings, "" if kind == "exact" else f"{method} exact")


def extra(base: str, method: str | None = None, **settings: str) -> Variant:
    """A variant of the method `base` with the teacher linearised in the attack, compared with it."""
    return Variant(method or base, {f"{base}.teacher_in_attack": "linear"} | settings, f"{base} linear")


GROUPS: dict[str, dict[str, Variant]] = {
    "teacher": {
        f"{method} {kind}": asked(method, kind) for method in ("dgad", "adaad", "adaad+igdm") for kind in KINDS
    },
    "extras": {
        "dgad linear": Variant("dgad", {"dgad.teacher_in_attack": "linear"}),
        "dgad linear, AWP": extra("dgad", awp_gamma="0.005"),
        "dgad linear, EMA": extra("dgad", averaging="ema", ema_decay="0.99"),
        "dgad linear, SWA": extra("dgad", averaging="swa"),
        "dgad linear, AWP and EMA": extra("dgad", awp_gamma="0.005", averaging="ema", ema_decay="0.99"),
        "dgad+saad linear": extra("dgad", "dgad+saad"),
        "dgad+igdm linear": extra("dgad", "dgad+igdm"),
        "dgad+classwise linear": extra("dgad", "dgad+classwise"),
        "rslad": Variant("rslad"),
        "rslad+classwise": Variant("rslad+classwise", reference="rslad"),
        "adaad linear": Variant("adaad", {"adaad.teacher_in_attack": "linear"}),
        "adaad+igdm linear": extra("adaad", "adaad+igdm"),
        "adaad+saad linear": extra("adaad", "adaad+saad"),
        "SAAD: adaad+igdm+saad linear, SWA": extra("adaad", "adaad+igdm+saad", averaging="swa"),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", default="teacher", choices=list(GROUPS))
    parser.add_argument("--only", help="names of variants, semicolon between")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--teacher-model", default="resnet20")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--epochs", type=int, help="of students and teachers; default: the dataset's own")
    parser.add_argument("--limit-train", type=int)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="for all runs")
    parser.add_argument("--attack", default="autoattack", help="autoattack, autoattack-fast or another budget attack")
    parser.add_argument("--limit", type=int, help="test images; default: all")
    parser.add_argument("--minutes", type=float, help="begin nothing new after this time")
    parser.add_argument("--out", type=Path, default=Path("runs/inner-teacher"))
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    options = parser.parse_args()
    variants = chosen(options)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    until = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    if not options.table:
        for seed in seeds:  # so that a table of few seeds has all variants
            for name in variants:
                if time.monotonic() < until and not result_file(options, name, seed).is_file():
                    run(options, name, variants[name], seed)
    found = [json.loads(path.read_text()) for path in sorted((options.out / "results").glob("*.json"))]
    found = [each for each in found if each["attack"] == options.attack]
    text = about(options) + table(found, list(variants), variants)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(text, encoding="utf-8")
    write_json(options.out / "results.json", found)


def chosen(options: argparse.Namespace) -> dict[str, Variant]:
    """The group's variants, or those asked for, each with its reference."""
    known = GROUPS[options.group]
    names = options.only.split(";") if options.only else list(known)
    names = list(dict.fromkeys(each for name in names for each in (known[name].reference, name) if each))
    return {name: known[name] for name in names}


def place_of(name: str, seed: int) -> str:
    return f"{name.replace(' ', '-').replace(',', '').replace(':', '')}-{seed}"


def result_file(options: argparse.Namespace, name: str, seed: int) -> Path:
    where: Path = options.out / "results" / f"{place_of(name, seed)}-{options.attack}.json"
    return where


def run(options: argparse.Namespace, name: str, variant: Variant, seed: int) -> None:
    """Train a student, and its teacher if it is the first of its seed; attack it; keep what was found."""
    teacher = RunFolder(options.out / f"teacher-{seed}")
    values: dict[str, Any] = {"dataset": options.dataset, "student": options.student, "seed": seed}
    for key in ("data_dir", "epochs", "limit_train"):
        if getattr(options, key) is not None:
            values[key] = getattr(options, key)
    if not teacher.finished():
        config = options.out / f"teacher-{seed}.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        own = TrainConfig.model_validate(values | {"teacher_model": options.teacher_model})
        own.resolved().for_teacher().save(config)
        train(teacher, ["--config", str(config)], options)
    student = RunFolder(options.out / place_of(name, seed))
    if not student.finished():
        flags = ["--method", variant.method, "--teacher", str(teacher.path)]
        flags += [text for key, value in values.items() for text in (f"--{key.replace('_', '-')}", str(value))]
        flags += [text for key, value in variant.settings.items() for text in ("--set", f"{key}={value}")]
        train(student, flags, options)
    attacked = student.path / options.attack
    flags = ["--model", str(student.best), "--attack", options.attack, "--output", str(attacked), "--quiet"]
    flags += ["--data-dir", str(options.data_dir)] if options.data_dir else []
    flags += ["--limit", str(options.limit)] if options.limit else []
    dgad("attack", *flags)
    write_json(result_file(options, name, seed), summed_up(student, attacked, name, seed, options))


def train(folder: RunFolder, flags: list[str], options: argparse.Namespace) -> None:
    more = [text for setting in options.settings for text in ("--set", setting)]
    again = ["--resume"] if folder.exists() else [*flags, *more]
    dgad("train", "--out", str(folder.path), "--checkpoint-minutes", "0.5", "--quiet", *again)


def dgad(*words: str) -> None:
    """One command in a process of its own. SIGTERM for this one ends it too, at its next step."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "cli", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ))
    print(f"{time.monotonic() - begun:.0f} s: dgad {' '.join(words)}", file=sys.stderr, flush=True)


def summed_up(student: RunFolder, attacked: Path, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What is kept of a student: who holds which image, and what its training cost."""
    (samples,) = attacked.rglob("samples.npz")
    with np.load(samples) as file:
        (row,) = (key for key in file.files if key.startswith("robust/"))
        index, label, clean, robust = (file[key] for key in ("index", "label", "clean_pred", row))
    records = student.records()
    epochs = [each for each in records if each["event"] == "epoch"]
    per_class = [float(robust[label == each].mean()) for each in np.unique(label)]
    return {
        "variant": name,
        "seed": seed,
        "attack": options.attack,
        "images": len(index),
        "clean": float((clean == label).mean()),
        "robust": float(robust.mean()),
        "worst_class": min(per_class),
        "seconds": records[-1]["seconds"],
        "images_per_second": mean(each["samples_per_second"] for each in epochs),
        "index": index.tolist(),
        "held": robust.astype(int).tolist(),
    }


def about(options: argparse.Namespace) -> str:
    import torch

    return (
        f"{options.dataset}, {options.student} from {options.teacher_model}, {options.attack}; "
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}\n\n"
    )


def table(found: list[dict[str, Any]], names: list[str], variants: dict[str, Variant]) -> str:
    """A line per variant, compared with its reference on the seeds that both have."""
    head = ["variant", "seeds", "clean", "robust", "worst class", "training s", "images/s"]
    head += ["robust, difference", "clean, difference", "worst class, difference", "images", "times as fast"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in names:
        own = {each["seed"]: each for each in found if each["variant"] == name}
        if not own:
            continue
        cells = [name, str(len(own)), *(f"{mean(e[key] for e in own.values()):.1%}" for key in ("clean", "robust"))]
        cells += [f"{mean(e['worst_class'] for e in own.values()):.1%}"]
        cells += [f"{mean(e['seconds'] for e in own.values()):.0f}"]
        cells += [f"{mean(e['images_per_second'] for e in own.values()):.0f}"]
        base = {each["seed"]: each for each in found if each["variant"] == variants[name].reference}
        common = sorted(own.keys() & base.keys())
        if common:
            cells += [
                interval([own[s][key] - base[s][key] for s in common]) for key in ("robust", "clean", "worst_class")
            ]
            only = [(np.array(own[s]["held"]), np.array(base[s]["held"])) for s in common]
            cells += [f"{sum(int((a > b).sum()) for a, b in only)} : {sum(int((b > a).sum()) for a, b in only)}"]
            cells += [f"{mean(own[s]['images_per_second'] / base[s]['images_per_second'] for s in common):.2f}"]
        lines.append("| " + " | ".join([*cells, *[""] * (len(head) - len(cells))]) + " |")
    return "\n".join(lines) + "\n"


def interval(differences: list[float]) -> str:
    """The mean of differences and Student's interval of 95 %, in percentage points."""
    centre, n = mean(differences), len(differences)
    if n < 2:
        return f"{100 * centre:+.1f}"
    half = float(student_t.ppf(0.975, n - 1)) * stdev(differences) / n**0.5
    return f"{100 * centre:+.1f} ({100 * (centre - half):+.1f} to {100 * (centre + half):+.1f})"


if __name__ == "__main__":
    main()
