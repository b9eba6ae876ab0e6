"""What dgad-tk does on a CUDA card: its tests, the three commands, and how fast it trains and attacks there.

    python benchmarks/gpu.py --out runs/gpu --minutes 10
    python benchmarks/gpu.py --network runs/cifar/best.safetensors --package

Prints tables for docs/measurements.md. Each part is a process of its own: one that fails is reported and the others go
on (exit code 1). What has succeeded is kept in `--out`, and the same command runs only the rest. Without a card it says
so and exits with 2; `--cpu` tries the script there with tiny numbers, which measure nothing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=30.0, help="for all parts together")
    parser.add_argument("--only", help=f"parts, comma between: {','.join(PARTS)}")
    parser.add_argument("--network", type=Path, help="that AutoAttack is timed on [the digits' student]")
    parser.add_argument("--images", type=int, default=128, help="on which it is timed")
    parser.add_argument("--package", action="store_true", help="time pyautoattack on the same images")
    parser.add_argument("--step-seconds", type=float, default=4.0, help="over which a step or a pass is timed")
    parser.add_argument("--cpu", action="store_true", help="try the script without a card")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # set for the processes that this one starts
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.cpu:
        print("no card: torch sees no CUDA device here; --cpu tries the script without one", file=sys.stderr)
        sys.exit(2)
    if options.part:
        PARTS[options.part](options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    until, bad = time.monotonic() + 60 * options.minutes, []
    names = options.only.split(",") if options.only else list(PARTS)
    for name in names:
        text = options.out / f"{name}.md"
        left = until - time.monotonic()
        if text.is_file():
            continue
        why = "no time was left" if left < 1 else run_part(name, text, left)
        if why:
            bad.append(f"{name}: {why}")
    print(
        "\n".join((options.out / f"{name}.md").read_text() for name in names if (options.out / f"{name}.md").exists())
    )
    for line in bad:
        print(f"not measured: {line}")
    sys.exit(1 if bad else 0)


def run_part(name: str, text: Path, seconds: float) -> str:
    """Run a part in a process of its own and keep what it prints; why there is nothing to keep, if so."""
    log = text.with_suffix(".log")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))}
    with log.open("w") as errors:
        try:
            done = subprocess.run(
                [sys.executable, *sys.argv, "--part", name],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                timeout=seconds,
                env=environment,
            )
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b""
            text.with_suffix(".partial").write_bytes(said if isinstance(said, bytes) else said.encode())
            return f"not done within {seconds:.0f} s; see {log}"
    if done.returncode:
        text.with_suffix(".partial").write_text(done.stdout)
        last = (log.read_text().strip().splitlines() or ["nothing was said"])[-1]
        return f"exit code {done.returncode}: {last}; see {log}"
    text.write_text(done.stdout)
    text.with_suffix(".partial").unlink(missing_ok=True)
    return ""


# The parts -----------------------------------------------------------------------------------------------------------


def versions(options: argparse.Namespace) -> None:
    import onnx
    import onnxruntime

    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        device = f"{torch.cuda.get_device_name()}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        device = "no card"
    providers = ", ".join(each.removesuffix("ExecutionProvider") for each in onnxruntime.get_available_providers())
    print(
        f"{device}; {os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}, "
        f"torch {torch.__version__}, onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__} ({providers}).\n"
    )


def tests(options: argparse.Namespace) -> None:
    # Warnings of other versions of the libraries are no failures of what is tested.
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default"]
    target = str(ROOT / "tests" / "test_gpu.py")
    if options.cpu:
        command += ["--collect-only"]
    done = subprocess.run([*command, target], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    print(done.stdout, file=sys.stderr)
    print(f"`pytest -m gpu`: {done.stdout.strip().splitlines()[-1].strip('= ')}\n")
    sys.exit(done.returncode)


def digits(options: argparse.Namespace) -> None:
    """The three commands as they are on a first day, with fewer epochs."""
    epochs = "1" if options.cpu else "5"
    limit = ["--limit-train", "64"] if options.cpu else []
    folder = options.out.resolve() / "digits"
    folder.mkdir(exist_ok=True)
    run = f"run-{int(time.time())}"
    for command in (
        ["train", "--epochs", epochs, "--teacher-epochs", epochs, *limit, "--out", run, "--quiet"],
        ["export", run, "--format", "onnx"],
        ["attack", "--model", "student.onnx", "--quiet", *(["--limit", "16"] if options.cpu else [])],
    ):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "cli", *command], cwd=folder, stdout=subprocess.PIPE, text=True)
        print(f"    $ dgad {' '.join(command)}  # {time.perf_counter() - begun:.1f} s")
        print("".join(f"    {line}\n" for line in done.stdout.splitlines()))
        if done.returncode:
            sys.exit(done.returncode)
    (folder / run / "best.safetensors").replace(options.out / "digits.safetensors")


def steps(options: argparse.Namespace) -> None:
    """Training steps a second: PGD-10 adversarial training, and DGAD with a large teacher."""
    from dgad_tk.ascent.folded import Inner, autocast
    from dgad_tk.config.threat import ThreatModel
    from dgad_tk.methods import Batch, build_method
    from dgad_tk.models import build_model
    from dgad_tk.models.trained import shared

    device, threat = torch.device("cpu" if options.cpu else "cuda"), ThreatModel.of("linf", 8 / 255)
    rows = [("pgd-at", "resnet18", "", 256), ("pgd-at", "resnet8", "", 256), ("dgad", "resnet18", "wrn-34-10", 128)]
    if options.cpu:
        rows = [("pgd-at", "resnet8", "", 4), ("dgad", "resnet8", "resnet20", 4)]
    print("| training, PGD-10 | batch | precision | steps/s | images/s | memory, GiB |\n|---|---|---|---|---|---|")
    for name, student, teacher, batch in rows:
        for precision in ("fp32", "bf16"):
            torch.manual_seed(0)
            if not options.cpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            last = {"memory_format": torch.channels_last}
            net = build_model(student, in_channels=3, classes=10).to(device, **last).train()  # type: ignore[call-overload]
            inner, method, both = Inner(precision), build_method(name, {}), shared(net)  # type: ignore[arg-type]
            guide = None
            if teacher:
                frozen = build_model(teacher, in_channels=3, classes=10).to(device).eval().requires_grad_(False)
                guide = inner.view(frozen)
            optimizer = torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
            x, y = torch.rand(batch, 3, 32, 32, device=device), torch.arange(batch, device=device) % 10
            noise = torch.randn_like(x)

            def step() -> None:
                with autocast(precision, device):  # noqa: B023 - called before the next turn
                    given = Batch(x, y, lambda kind: noise, len(x), inner=inner)  # noqa: B023
                    loss = method.step(both, guide, given, threat).loss  # noqa: B023
                optimizer.zero_grad(set_to_none=True)  # noqa: B023
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()  # noqa: B023

            seconds = timed(step, options)
            memory = "" if options.cpu else f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"
            what = f"{name} {student}" + (f" <- {teacher}" if teacher else "")
            print(
                f"| {what} | {batch} | {precision} | {1 / seconds:.2f} | {batch / seconds:,.0f} | {memory} |",
                flush=True,
            )
    print()


def passes(options: argparse.Namespace) -> None:
    """Passes of an attack: forward and backward together, in both precisions of the search."""
    from dgad_tk.artifacts.predictor import predictor_of_module
    from dgad_tk.ascent.losses import cross_entropy
    from dgad_tk.models import build_model
    from evaluators.attacks.native import Victim
    from evaluators.target.estimators import to_estimator

    names, batches = (["resnet8"], [4]) if options.cpu else (["resnet20", "wrn-16-4", "vgg16", "resnet18"], [64, 256])
    print("| gradient passes of an attack | batch | fp32, images/s | bf16, images/s | ratio |\n|---|---|---|---|---|")
    for name in names:
        for batch in batches:
            torch.manual_seed(0)
            module = build_model(name, in_channels=3, classes=10)
            predictor = predictor_of_module(module, (3, 32, 32), format="torchscript")
            rates: dict[str, float] = {}
            for precision in ("fp32", "bf16"):
                try:
                    more: dict[str, Any] = {} if precision == "fp32" else {"search_precision": precision}
                    victim = Victim(to_estimator(predictor, **more))
                except TypeError:  # a version without --search-precision
                    continue
                x = torch.rand(batch, 3, 32, 32, device=victim.device)
                y = torch.zeros(batch, dtype=torch.int64, device=victim.device)

                def gradient() -> None:
                    images = x.clone().requires_grad_()  # noqa: B023 - called before the next turn
                    torch.autograd.grad(cross_entropy(victim.logits(images), y).sum(), images)  # noqa: B023

                with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                    rates[precision] = batch / timed(gradient, options)
            low = f"{rates['bf16']:,.0f} | {rates['bf16'] / rates['fp32']:.2f}" if "bf16" in rates else " | "
            print(f"| {name} | {batch} | {rates['fp32']:,.0f} | {low} |", flush=True)
    print()


def attacks(options: argparse.Namespace) -> None:
    """Whole attacks on one network, by benchmarks/attacks/fast.py."""
    from evaluators.attacks import ATTACKS

    network = (options.network or options.out / "digits.safetensors").resolve()
    fast = ["autoattack-fast", "autoattack-fast:bf16"] if "autoattack-fast" in ATTACKS else []
    listed = options.out / "network.yaml"
    listed.write_text(json.dumps({network.parent.name if options.network else "digits": {"file": str(network)}}))
    limit = 16 if options.cpu else options.images
    command = [sys.executable, str(ROOT / "benchmarks" / "attacks" / "fast.py"), str(listed), "--limit", str(limit)]
    command += ["--rows", ",".join([*fast, "autoattack"]), "--out", str(options.out / "attacks")]
    if options.package:
        command += ["--package"]
    done = subprocess.run([*command, "--cost", str(4 if options.cpu else limit)], stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    sys.exit(done.returncode)


def timed(call: Callable[[], None], options: argparse.Namespace) -> float:
    """Median seconds of a call, after three to warm up."""
    found: list[float] = []
    until = None
    while until is None or (time.perf_counter() < until and len(found) < 200) or len(found) < 6:
        begun = time.perf_counter()
        call()
        if not options.cpu:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
        if len(found) == 3 and until is None:
            until = time.perf_counter() + (0.0 if options.cpu else options.step_seconds)
    return median(found[3:])


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "versions": versions,
    "tests": tests,
    "steps": steps,
    "passes": passes,
    "digits": digits,
    "attacks": attacks,
}
"""In the order in which they run."""


if __name__ == "__main__":
    main()
