"""Parts `attack` and `passes`: whole attacks beside the authors' package, and the passes that they are made of."""

import argparse
import importlib.util
import json
import subprocess
import sys
from typing import Any

import torch

from card.common import ROOT, timed


def attack(options: argparse.Namespace) -> None:
    """Standard and fast AutoAttack on one network, by benchmarks/attacks/fast.py, with pyautoattack beside them."""
    network = options.network or options.out / "train.safetensors"
    if not network.is_file():
        print("no network to attack: the part train has left none; name one by --network", file=sys.stderr)
        sys.exit(1)
    package = importlib.util.find_spec("pyautoattack") is not None
    listed = options.out / "network.yaml"
    name = options.network.parent.name if options.network else "two minutes"
    listed.write_text(json.dumps({name: {"file": str(network.resolve())}}))
    limit, timed_on = (16, 4) if options.cpu else (options.images, min(32, options.images))
    command = [sys.executable, str(ROOT / "benchmarks" / "attacks" / "fast.py"), str(listed), "--limit", str(limit)]
    command += ["--rows", "autoattack-fast,autoattack", "--out", str(options.out / "attacks")]
    command += ["--cost", str(timed_on), *(["--package"] if package else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    if not package:
        print("pyautoattack is not installed, so nothing stands beside ours (`pip install pyautoattack`).\n")
    sys.exit(done.returncode)


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
                more: dict[str, Any] = {} if precision == "fp32" else {"search_precision": precision}
                victim = Victim(to_estimator(predictor, **more))
                x = torch.rand(batch, 3, 32, 32, device=victim.device)
                y = torch.zeros(batch, dtype=torch.int64, device=victim.device)

                def gradient() -> None:
                    images = x.clone().requires_grad_()  # noqa: B023 - called before the next turn
                    torch.autograd.grad(cross_entropy(victim.logits(images), y).sum(), images)  # noqa: B023

                with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                    rates[precision] = batch / timed(gradient, options)
            print(
                f"| {name} | {batch} | {rates['fp32']:,.0f} | {rates['bf16']:,.0f} "
                f"| {rates['bf16'] / rates['fp32']:.2f} |",
                flush=True,
            )
    print()
