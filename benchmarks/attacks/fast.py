"""A cheaper attack beside standard AutoAttack: robust counts image by image, passes, seconds.

    python benchmarks/attacks/fast.py networks.yaml --out runs/fast --limit 500
    python benchmarks/attacks/fast.py networks.yaml --rows autoattack,autoattack-fast,autoattack-fast:bf16 --package

`networks.yaml` names the files, with paths relative to it; what a file's record says may be left out:

    resnet18: {file: acceptance/resnet18/best.safetensors}
    resnet_4b: {file: resnet_4b.onnx, dataset: imagefolder, data_dir: cifar, norm: linf, eps: 2/255,
                mean: [0.4914, 0.4822, 0.4465], std: [0.2471, 0.2435, 0.2616]}

A row is an attack of `dgad list attacks`; `:bf16` behind it is `--search-precision bf16`. Every row attacks the same
first images of the test split's fixed order, and the file's own runtime judges. What is finished is kept in `--out`:
the same command goes on, prints the table of what is there, and writes `table.md` and `fast.json`.

`--cost N` attacks N images again that every row has left robust: on these an attack spends all it has, so its passes
per robust image are exact there, and rows that take turns (`--repeats`) give ratios of time. `--package` adds the
authors' package to that, which is given the same differentiable module in float32 and judges by it. `--few N` gives
the reference and the package only N of these images, since they may take half a minute each.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml

from cli.flags.images import ImageFlags
from cli.flags.models import default_eps, open_model
from cli.flags.values import radii_of
from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.artifacts.preprocessing import Interface
from dgad_tk.common import UserError, write_json
from dgad_tk.data import Split
from evaluators.attacks.array_file import NOWHERE
from evaluators.engine.evaluate import CHUNK, default_batch_size, evaluate
from evaluators.engine.search import Chunk, search
from evaluators.plan.rows import Row, plan
from evaluators.target.judge import images_of
from evaluators.verdict.paired import paired

PACKAGE = "package"
NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True)
class Network:
    """A file of the list, opened."""

    name: str
    predictor: Predictor
    split: Split
    norm: Any
    eps: float
    batch_size: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", type=Path, help="YAML file")
    parser.add_argument("--out", type=Path, default=Path("runs/fast"))
    parser.add_argument("--rows", default="autoattack,autoattack-fast", help="in the order in which they run")
    parser.add_argument("--reference", default="autoattack", help="the row that the others are compared with")
    parser.add_argument("--only", help="names of networks, comma between")
    parser.add_argument("--limit", type=int, default=500, help="test images a network")
    parser.add_argument("--piece", type=int, default=CHUNK, help="images of the reference between two savings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--jobs", type=int, default=1, help="networks at once: their seconds are no timing")
    parser.add_argument("--minutes", type=float, help="begin nothing new after this time")
    parser.add_argument("--cost", type=int, default=0, help="robust images on which rows are timed in turns")
    parser.add_argument("--few", type=int, help="of them for the reference and the package [all]")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--package", action="store_true", help="time pyautoattack too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", action="store_true", help="print what is there and attack nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    listed = yaml.safe_load(options.networks.read_text(encoding="utf-8"))
    names = options.only.split(",") if options.only else list(listed)
    until = time.monotonic() + 60 * options.minutes if options.minutes else float("inf")
    failed = False
    if not options.table:
        if options.jobs > 1:
            beside_each_other(names, options)
        for name in names:
            try:
                network = opened(name, listed[name], options)
                failed |= not attacked(network, options, until)
                if options.cost and time.monotonic() < until:
                    timed(network, options)
            except UserError as error:
                failed = True
                print(f"{name}: {error.message} ({error.hint})", file=sys.stderr, flush=True)
    text, document = summary(names, options)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(text, encoding="utf-8")
    write_json(options.out / "fast.json", document)
    sys.exit(1 if failed else 0)


def beside_each_other(names: list[str], options: argparse.Namespace) -> None:
    """Attack several networks at once, each in a process of its own; what they find is read afterwards."""
    given = [each for each in sys.argv[1:] if not each.startswith("--jobs=")]
    if "--jobs" in given:
        del given[given.index("--jobs") : given.index("--jobs") + 2]
    waiting, running = list(names), list[subprocess.Popen[bytes]]()
    options.out.mkdir(parents=True, exist_ok=True)
    while waiting or running:
        running = [each for each in running if each.poll() is None]
        while waiting and len(running) < options.jobs:
            name = waiting.pop(0)
            command = [sys.executable, sys.argv[0], *given, "--only", name, "--cost", "0"]
            with (options.out / f"{name}.log").open("wb") as log:
                running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        time.sleep(0.2)


def opened(name: str, entry: dict[str, Any], options: argparse.Namespace) -> Network:
    beside = options.networks.parent
    interface = Interface(mean=tuple(entry.get("mean", ())), std=tuple(entry.get("std", ())))
    data_dir = beside / entry["data_dir"] if "data_dir" in entry else None
    predictor, images = open_model(
        beside / entry["file"], ImageFlags(entry.get("dataset"), data_dir), interface, only="test"
    )
    norm = entry.get("norm") or (predictor.artifact.threat.get("norm", "linf") if predictor.artifact else "linf")
    radii = radii_of(str(entry["eps"]) if "eps" in entry else None, norm)
    eps = radii[0] if radii else default_eps(predictor.artifact, images, norm)
    split = images.test.subset(min(options.limit, len(images.test)))
    batch_size = options.batch_size or default_batch_size(predictor.input_shape)
    return Network(name, predictor, split, norm, eps, batch_size)


def row_of(label: str, network: Network) -> Row:
    """`autoattack-fast:bf16` as a row of an evaluation."""
    name, _, precision = label.partition(":")
    more = {"search_precision": precision} if precision else {}
    return plan([name], norm=network.norm, eps=[network.eps], **more)[0]  # type: ignore[arg-type]


def attacked(network: Network, options: argparse.Namespace, until: float) -> bool:
    """Every row on every piece of the images that is not there yet; whether all rows ran."""
    well = True
    for label in options.rows.split(","):
        row = row_of(label, network)
        size = piece_size(options, label)
        for start in range(0, len(network.split), size):
            place = outcome_file(options, network.name, label, start)
            if place.is_file() or time.monotonic() > until:
                continue
            piece = slice(start, min(start + size, len(network.split)))
            split = replace(network.split, index=network.split.index[piece], labels=network.split.labels[piece])
            begun = time.perf_counter()
            found = evaluate(
                network.predictor,
                split,
                [row],
                seed=options.seed,
                batch_size=network.batch_size,
                store=options.out / "units",
            )
            outcome = found.outcomes[0]
            if outcome.unit is None:
                print(f"{network.name} {label}: {outcome.reason}", file=sys.stderr, flush=True)
                well = False
                continue
            unit = outcome.unit
            document = {
                "network": network.name,
                "norm": network.norm,
                "eps": network.eps,
                "row": label,
                "index": split.index.tolist(),
                "right": found.clean.right(split.labels).astype(int).tolist(),
                "broken": unit.broken.astype(int).tolist(),
                "forward": unit.forward_passes,
                "backward": unit.backward_passes,
                "seconds": unit.seconds,
                "stages": dict(zip(unit.stages, unit.stage_seconds, strict=False)),
                "flags": outcome.flags,
                "runtime": network.predictor.runtime,
            }
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, document)
            took = time.perf_counter() - begun
            print(f"{network.name} {label} {piece.start}-{piece.stop}: {took:.0f} s", file=sys.stderr, flush=True)
    return well


def piece_size(options: argparse.Namespace, label: str) -> int:
    """Images between two savings. Other rows than the reference get whole units, as in `dgad attack`: an alarm of
    autoattack-fast looks at all images of a unit."""
    return int(options.piece) if label == options.reference else CHUNK


def outcome_file(options: argparse.Namespace, name: str, label: str, start: int) -> Path:
    where: Path = options.out / "outcomes" / name
    end = min(start + piece_size(options, label), options.limit)
    return where / f"{label.replace(':', '+')}-{start}-{end}.json"


def outcomes(options: argparse.Namespace, name: str, label: str) -> dict[str, Any] | None:
    """What a row has done on a network so far, its pieces joined; None if nothing is there."""
    joined: dict[str, Any] | None = None
    for start in range(0, options.limit, piece_size(options, label)):
        place = outcome_file(options, name, label, start)
        if not place.is_file():
            break
        found = json.loads(place.read_text(encoding="utf-8"))
        if joined is None:
            joined = found
            continue
        for key in ("index", "right", "broken", "forward", "backward", "seconds"):
            joined[key] = joined[key] + found[key]
    return joined


def timed(network: Network, options: argparse.Namespace) -> None:
    """Passes and seconds of every row on images that all rows have left robust, in turns."""
    place = options.out / "cost" / f"{network.name}.json"
    labels = options.rows.split(",")
    found = [each for each in (outcomes(options, network.name, label) for label in labels) if each is not None]
    if place.is_file() or len(found) < len(labels):
        return
    n = min(len(each["right"]) for each in found)
    held = np.logical_and.reduce([np.array(each["right"][:n]) > np.array(each["broken"][:n]) for each in found])
    at = np.flatnonzero(held)[: options.cost]
    if len(at) == 0:
        return
    few = at[: options.few]
    chunks = {len(each): chunk_of(network, each) for each in (at, few)}
    images = {label: len(few) if label in (options.reference, PACKAGE) else len(at) for label in (*labels, PACKAGE)}
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for label in labels:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                made = search(
                    network.predictor,
                    row_of(label, network),
                    chunks[images[label]],
                    seed=options.seed,
                    batch_size=network.batch_size,
                    halfway=NOWHERE,
                )
            spent = {"seconds": made.seconds, "forward": made.forwards, "backward": made.backwards}
            spent = {key: value / images[label] for key, value in spent.items()}
            runs.setdefault(label, []).append(spent)
        if options.package:
            seconds = by_package(network, chunks[images[PACKAGE]], options.seed)
            runs.setdefault(PACKAGE, []).append({"seconds": seconds / images[PACKAGE]})
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, {"network": network.name, "images": images, "per_image": runs})


def chunk_of(network: Network, at: np.ndarray) -> Chunk:
    split = replace(network.split, index=network.split.index[at], labels=network.split.labels[at])
    return Chunk(images_of(split, slice(None)), split.labels, split.index, np.ones(len(at), dtype=bool), None)


def by_package(network: Network, chunk: Chunk, seed: int) -> float:
    """Seconds of the authors' standard ensemble."""
    from pyautoattack import AutoAttack as Package

    module = network.predictor.module
    assert module is not None
    device = next((value.device for value in module.state_dict().values()), torch.device("cpu"))
    package = Package(module, device=device, eps=network.eps, norm=NORMS[network.norm], version="standard", seed=seed)
    package.verbose = False
    x, y = torch.from_numpy(chunk.images).to(device), torch.from_numpy(chunk.labels).to(device)
    begun = time.perf_counter()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        package.run_standard_evaluation(x, y, batch_size=network.batch_size)
    return time.perf_counter() - begun


def summary(names: list[str], options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The tables, and the same as a document."""
    labels = options.rows.split(",")
    others = [label for label in labels if label != options.reference]
    head = (
        "| network | norm, eps | images, right | row | robust | passes a robust image, forward + backward | seconds |"
    )
    head += " only it breaks | only the reference | McNemar's p | passes | time |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|---|---|---|"]
    pooled: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {label: [] for label in others}
    found_all: list[dict[str, Any]] = []
    for name in names:
        base = outcomes(options, name, options.reference)
        for label in labels:
            if (found := outcomes(options, name, label)) is None:
                continue
            line, said = compared(found, base, label == options.reference, pooled.get(label))
            lines.append(line)
            found_all.append(said)
    for label, pairs in pooled.items():
        if pairs:
            test = paired(*(np.concatenate(each) for each in zip(*pairs, strict=True)))
            lines.append(
                f"| all {len(pairs)} | | {test.n} | {label} | {test.difference:+.2%} of the images "
                f"({test.ci95[0]:+.2%} to {test.ci95[1]:+.2%}) | | | {test.only_second} | {test.only_first} "
                f"| {test.p:.2g} | | |"
            )
            found_all.append({"network": "all", "row": label, **vars(test)})
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    about = f"{device}, torch {torch.__version__}, {options.threads} threads, seed {options.seed}"
    text = "\n".join([about, "", *lines, ""])
    costs = [json.loads(path.read_text()) for path in sorted((options.out / "cost").glob("*.json"))]
    costs = [each for each in costs if each["network"] in names]
    if costs:
        text += "\n" + cost_table(costs, options.reference)
    return text, {"about": about, "rows": found_all, "cost": costs}


def compared(
    found: dict[str, Any], base: dict[str, Any] | None, is_base: bool, pairs: list[tuple[np.ndarray, np.ndarray]] | None
) -> tuple[str, dict[str, Any]]:
    """A line of the table, and the same as a document."""
    held = np.array(found["right"]) > np.array(found["broken"])
    robust = max(1, int(held.sum()))
    spent = f"{found['forward'] / robust:,.0f} + {found['backward'] / robust:,.0f}"
    said = {**{key: value for key, value in found.items() if key not in ("index", "right", "broken")}}
    said |= {"n": len(held), "right": int(sum(found["right"])), "robust": int(held.sum())}
    cells = ["", "", "", "", ""]
    if base is not None and not is_base:
        n = min(len(held), len(base["right"]))
        theirs = (np.array(base["right"]) > np.array(base["broken"]))[:n]
        test = paired(held[:n], theirs)
        said |= {"only_it": test.only_second, "only_reference": test.only_first, "p": test.p}
        said["only_it_index"] = np.array(found["index"])[:n][theirs & ~held[:n]].tolist()
        said["only_reference_index"] = np.array(found["index"])[:n][held[:n] & ~theirs].tolist()
        cells = [str(test.only_second), str(test.only_first), f"{test.p:.2g}"]
        whole = len(held) == len(base["right"])
        passes = (found["forward"] + found["backward"]) / (base["forward"] + base["backward"])
        cells += [f"{passes:.1%}", f"{found['seconds'] / base['seconds']:.1%}"] if whole else ["", ""]
        if pairs is not None:
            pairs.append((held[:n], theirs))
    start = [found["network"], f"{found['norm']} {found['eps']:.4g}", f"{len(held)}, {said['right']}", found["row"]]
    return "| " + " | ".join([*start, str(said["robust"]), spent, f"{found['seconds']:.1f}", *cells]) + " |", said


def cost_table(costs: list[dict[str, Any]], reference: str) -> str:
    """Passes a robust image and ratios of time, from rows that took turns."""
    lines = ["| network | robust images | row | forward | backward | seconds an image | reference over it, time |"]
    lines.append("|---|---|---|---|---|---|---|")
    for each in costs:
        for label, runs in each["per_image"].items():
            passes = [f"{runs[0][key]:,.0f}" if key in runs[0] else "" for key in ("forward", "backward")]
            ratios = [a["seconds"] / b["seconds"] for a, b in zip(each["per_image"][reference], runs, strict=True)]
            cells = [each["network"], str(each["images"][label]), label, *passes]
            lines.append("| " + " | ".join([*cells, f"{median(r['seconds'] for r in runs):.3f}"]))
            lines[-1] += f" | {median(ratios):.2f} |"
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
