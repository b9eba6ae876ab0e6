"""What standard AutoAttack misses where gradients are masked, and what autoattack-max finds there.

From a network's weights it makes four files and attacks them: float32; INT8, with the float32 file as its sibling; the
network behind a rounding of its input; the network with thresholds as MeanSparse has them (Amini et al., 2024,
https://arxiv.org/abs/2406.05927): after each BatchNorm, what is nearer to its channel's mean than a share of the
deviation becomes the mean. Each image's worst case after the standard stages and after all stages is counted, and INT8
is paired with float32.

    python benchmarks/attacks/masked.py runs/NAME/best.safetensors --limit 200

Finished parts are kept in --store: the same command again goes on.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cli.flags.images import ImageFlags
from dgad_tk.artifacts.predictor import Predictor
from dgad_tk.artifacts.weights import load_model
from dgad_tk.common import sha256_file
from dgad_tk.strangers.number_text import format_fraction
from evaluators.engine.evaluate import evaluate
from evaluators.plan.rows import plan
from evaluators.verdict.paired import paired
from exporters.formats import load
from exporters.onnx_write.float32 import save_onnx
from exporters.onnx_write.int8 import Int8, save_onnx_int8

ATTACK, STANDARD = "autoattack-max", "square"
CALIBRATION = 512


class Rounded(nn.Module):
    """A network behind a rounding of pixels to so many levels."""

    def __init__(self, net: nn.Module, levels: int) -> None:
        super().__init__()
        self.net, self.steps = net, levels - 1

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(torch.round(x * self.steps) / self.steps)
        return logits


class Sparse(nn.Module):
    """A BatchNorm, and then the mean of a channel in place of what is near it."""

    def __init__(self, norm: nn.Module, mean: Tensor, near: Tensor) -> None:
        super().__init__()
        self.norm = norm
        self.mean, self.near = nn.Buffer(mean), nn.Buffer(near)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return torch.where((x - self.mean).abs() > self.near, x, self.mean)


def sparse(net: nn.Module, images: Tensor, share: float) -> nn.Module:
    """`net`, changed in place, with thresholds of `share` deviations over `images`."""
    norms = {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: seen.update(
                {name: (out.mean((0, 2, 3), keepdim=True), out.std((0, 2, 3), keepdim=True))}
            )
        )
        for name, module in norms.items()
    ]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    for name, module in norms.items():
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, Sparse(module, seen[name][0], share * seen[name][1]))
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--levels", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.3, help="of a deviation, in which a channel is its mean")
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=["float32", "int8", "rounded", "thresholds"])
    parser.add_argument("--store", type=Path, default=Path("masked"))
    arguments = parser.parse_args()

    net, artifact = load_model(arguments.weights)
    artifact = artifact.model_copy(update={"source_sha256": sha256_file(arguments.weights)})
    images = ImageFlags().load(artifact)
    split, eps = images.test.subset(arguments.limit), artifact.threat["eps"]
    calibration = (images.train.take(slice(0, CALIBRATION)) / np.float32(255)).astype(np.float32)
    folder = arguments.store / artifact.source_sha256[:8]
    folder.mkdir(parents=True, exist_ok=True)
    save_onnx(net.eval(), artifact, folder / "float32.onnx")
    save_onnx_int8(net, artifact, folder / "int8.onnx", images=calibration, int8=Int8(CALIBRATION))
    save_onnx(Rounded(net, arguments.levels).eval(), artifact, folder / "rounded.onnx")
    save_onnx(sparse(net, torch.from_numpy(calibration), arguments.share).eval(), artifact, folder / "thresholds.onnx")

    whole = load(folder / "float32.onnx")
    print(f"{arguments.weights}: {len(split)} test images of {artifact.dataset}, Linf {format_fraction(eps)}")
    print(f"{'':<12}{'clean':>8}{'AutoAttack':>12}{'max':>8}  stages after AutoAttack's, and what they broke")
    left: dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]] = {}
    for name in arguments.only:
        predictor: Predictor = load(folder / f"{name}.onnx")
        if name == "int8":
            predictor = replace(predictor, siblings={"float32": whole})
        rows = plan([ATTACK], norm="linf", eps=[eps], settings={ATTACK: {"restarts": arguments.restarts}})
        found = evaluate(predictor, split, rows, store=arguments.store / "units")
        unit = found.outcomes[0].unit
        assert unit is not None
        last = unit.stages.index(STANDARD)
        standard = found.clean_right & ~(unit.broken & (unit.broken_by <= last))
        held = found.clean_right & ~unit.broken
        left[name] = standard, held
        counts = {stage: int((unit.broken_by == number).sum()) for number, stage in enumerate(unit.stages)}
        told = ", ".join(f"{stage} {counts[stage]}" for stage in unit.stages[last + 1 :] if counts[stage]) or "nothing"
        print(
            f"{name:<12}{found.clean_right.mean():>8.1%}{standard.mean():>12.1%}{held.mean():>8.1%}  {told}", flush=True
        )
    for word, place in (("AutoAttack", 0), ("max", 1)):
        if {"float32", "int8"} <= left.keys():
            pair = paired(left["float32"][place], left["int8"][place])
            low, high = pair.ci95
            print(
                f"float32 less INT8, {word}: {pair.difference:+.2%} ({low:+.2%} to {high:+.2%}), only float32 "
                f"{pair.only_first}, only INT8 {pair.only_second}, p {pair.p:.3f}"
            )


if __name__ == "__main__":
    main()
