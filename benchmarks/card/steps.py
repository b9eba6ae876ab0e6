"""Part `steps`: images a second of training steps, against a plain step and what the card can multiply."""

import argparse
import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from train_step import operations

from card.common import device_of, in_turns, matrix_peaks
from card.plain import PCR_WEIGHT, loss_of
from dgad_tk.ascent.folded import Inner, autocast
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods import Batch, build_method
from dgad_tk.models import build_model
from dgad_tk.models.trained import layout, shared

THREAT = ThreatModel.of("linf", 8 / 255)


@dataclass(frozen=True)
class Pair:
    """What is trained, and how fast it should be on an H100, in images/s: 36 % of what it multiplies in bfloat16."""

    student: str
    teacher: str
    batch: int
    aim: int


PAIRS = [
    Pair("resnet18", "", 256, 12_000),
    Pair("resnet18", "resnet18", 256, 6_000),
    Pair("resnet18", "wrn-34-10", 128, 1_000),
]
TINY = [Pair("resnet8", "", 4, 0), Pair("resnet8", "resnet8", 4, 0)]


@dataclass(frozen=True)
class Way:
    """A way to compute the step.

    Attributes:
        plain: as benchmarks/card/plain.py has it.
        precision: of the attack and of the outer step.
        graph: replay CUDA graphs in the attack.
        asks: `teacher_in_attack`.
    """

    plain: bool
    precision: Any
    graph: bool = False
    asks: str = "exact"


WAYS = {
    "plain, fp32": Way(True, "fp32"),
    "plain, bf16": Way(True, "bf16"),
    "fp32": Way(False, "fp32"),
    "bf16": Way(False, "bf16"),
    "bf16, CUDA graphs": Way(False, "bf16", graph=True),
    "bf16, linear": Way(False, "bf16", asks="linear"),
    "bf16, linear, CUDA graphs": Way(False, "bf16", graph=True, asks="linear"),
}


def steps(options: argparse.Namespace) -> None:
    """The ways take turns; ratios are medians over the rounds."""
    peaks = matrix_peaks(options)
    print(
        "Large matrix products: "
        + ", ".join(f"{peak / 1e12:,.1f} TFLOP/s in {name}" for name, peak in peaks.items())
        + " (fp32 as TF32, as torch runs convolutions).\n"
    )
    print("| training, PGD-10, 3x32x32 | batch | step | images/s | over plain fp32 | over plain bf16 | of peak | aim |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    rates, failed = {}, []
    for pair in TINY if options.cpu else PAIRS:
        try:
            rates[f"{pair.student}<-{pair.teacher}"] = compared(pair, peaks, options)
        except RuntimeError as error:  # out of memory: the other pairs may fit
            failed.append(f"{pair.student} <- {pair.teacher}: {str(error).splitlines()[0]}")
        if not options.cpu:
            torch.cuda.empty_cache()
    (options.out / "rates.json").write_text(json.dumps(rates))
    print()
    for line in failed:
        print(line, file=sys.stderr)
    if failed:
        sys.exit(1)


def compared(pair: Pair, peaks: dict[str, float], options: argparse.Namespace) -> dict[str, float]:
    """Print a row for each way; images a second by way."""
    device = device_of(options)
    torch.manual_seed(0)
    student = build_model(pair.student, in_channels=3, classes=10)
    teacher = build_model(pair.teacher, in_channels=3, classes=10) if pair.teacher else None
    for net in (student, teacher):
        if net is not None:
            with torch.no_grad():
                net.to(device).train()(torch.rand(64, 3, 32, 32, device=device))  # BatchNorm statistics of its own
    notes: list[str] = []
    ways = {name: way for name, way in WAYS.items() if way.asks == "exact" or teacher is not None}
    calls = {name: call_of(way, student, teacher, pair.batch, device, notes) for name, way in ways.items()}
    found = in_turns(calls, options, seconds=0.0 if options.cpu else len(ways) * options.step_seconds)
    rates = {}
    for name, way in ways.items():
        seconds = median(found[name])
        rates[name] = pair.batch / seconds
        ratios = [
            median(base / own for base, own in zip(found[f"plain, {each}"], found[name], strict=True))
            for each in ("fp32", "bf16")
        ]
        share = work(pair, way) / seconds / peaks[way.precision]  # of what a matrix product reaches here
        what = f"dgad {pair.student} from {pair.teacher}" if pair.teacher else f"pgd-at {pair.student}"
        aim = f"{pair.aim:,}" if pair.aim and way.precision == "bf16" and not way.plain and way.asks == "exact" else ""
        print(
            f"| {what} | {pair.batch} | {name} | {rates[name]:,.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} "
            f"| {share:.0%} | {aim} |",
            flush=True,
        )
    for line in dict.fromkeys(notes):
        print(f"| {line} | | | | | | | |")
    return rates


def work(pair: Pair, way: Way) -> float:
    """Floating-point operations of a step, counted; a gradient to images or weights costs as much as a forward pass."""
    if pair.teacher:
        return operations(pair.student, pair.teacher, pair.batch, 32, way.asks)
    # `operations` counts ten attack steps, two outer forward and backward passes, and two forwards of the teacher.
    both = operations(pair.student, pair.student, pair.batch, 32, "none")
    forward = both / (2 * THREAT.steps + 6 + 2)
    return forward * (2 * THREAT.steps + 3 + 1)


def call_of(
    way: Way, student: nn.Module, teacher: nn.Module | None, n: int, device: torch.device, notes: list[str]
) -> Callable[[], None]:
    """A whole step: attack, loss, backward pass, SGD."""
    form = torch.contiguous_format if way.plain else layout(device)
    net = copy.deepcopy(student).to(memory_format=form).train()  # type: ignore[call-overload]
    frozen = None if teacher is None else copy.deepcopy(teacher).eval().requires_grad_(False)
    # A rate so small that the network stays where it is.
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    x, y = torch.rand(n, 3, 32, 32, device=device), torch.arange(n, device=device) % 10
    noise = torch.randn_like(x)
    loss: Callable[[], Tensor]
    if way.plain:

        def loss() -> Tensor:
            return loss_of(net, frozen, x, y, noise, THREAT)

    else:
        inner = Inner(way.precision, recorded=way.graph, note=notes.append)
        guide = None if frozen is None else inner.view(frozen)
        more = {"pcr_weight": PCR_WEIGHT, "teacher_in_attack": way.asks} if guide is not None else {}
        method, trained = build_method("pgd-at" if guide is None else "dgad", more), shared(net)

        def loss() -> Tensor:
            batch = Batch(x, y, lambda kind: noise, n, inner=inner)
            return method.step(trained, guide, batch, THREAT).loss

    def step() -> None:
        with autocast(way.precision, device):
            made = loss()
        optimizer.zero_grad(set_to_none=True)
        made.float().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
