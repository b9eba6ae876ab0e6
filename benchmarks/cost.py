"""What an epoch of training costs, counted and not measured: multiply-adds of convolutions and matrix products.

The passes of each network are counted on the meta device, where nothing is computed; how many of them an image takes
follows from the method. Hours are these operations at an assumed share of a GPU's nominal peak.

    python benchmarks/cost.py --fp32 19.5 --bf16 312 --share 0.3
"""

import argparse
from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from dgad_tk.models import build_model

BATCH = 2
STEPS = 10
CLASSES = {"cifar10": 10, "cifar100": 100, "tiny-imagenet": 200}
SIZE = {"cifar10": 32, "cifar100": 32, "tiny-imagenet": 64}
IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "tiny-imagenet": 100_000}
SELECTED_ON = 10_000
"""The epoch is chosen on the test images, as in the papers, so that all of the training images are trained on."""


@dataclass(frozen=True)
class Passes:
    """Operations of one network on one image; a multiply-add is two."""

    forward: float
    input_gradient: float
    """Backward to the image only, as in an attack."""

    @property
    def attack(self) -> float:
        return STEPS * (self.forward + self.input_gradient)

    @property
    def training(self) -> float:
        # The gradient of a layer's weights costs what its forward does. It is not counted as the others are, since the
        # counter takes that of a depthwise convolution for a full one's. The stem's input gradient, which training does
        # not need, stays in: at most 1 %.
        return self.forward + self.input_gradient + self.forward


@dataclass(frozen=True)
class Run:
    """A training run of the paper; one without a teacher is PGD-AT or TRADES."""

    dataset: str
    student: str
    teacher: str | None
    method: str
    epochs: int = 200


RUNS = (
    Run("cifar10", "resnet18", "wrn-34-10", "dgad"),
    Run("cifar10", "resnet18", "wrn-34-20", "dgad"),
    Run("cifar10", "mobilenetv2", "wrn-34-10", "dgad"),
    Run("cifar10", "mobilenetv2", "wrn-34-20", "dgad"),
    Run("cifar10", "resnet18", "wrn-34-10", "rslad"),
    Run("cifar10", "wrn-34-10", None, "pgd-at", epochs=110),
    Run("cifar10", "wrn-34-10", "wrn-34-10", "dgad"),
    Run("cifar100", "resnet18", "wrn-34-10", "dgad"),
    Run("tiny-imagenet", "preact-resnet18", "preact-resnet18", "dgad"),
    Run("tiny-imagenet", "preact-resnet18", None, "trades"),
)


@cache
def passes(model: str, dataset: str) -> Passes:
    """Counted on images of the dataset's size; divided by their number."""
    with torch.device("meta"):
        net = build_model(model, in_channels=3, classes=CLASSES[dataset]).requires_grad_(False)
        x = torch.empty(BATCH, 3, SIZE[dataset], SIZE[dataset], requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        loss = net(x).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return Passes(forward.get_total_flops() / BATCH, backward.get_total_flops() / BATCH)


def per_image(run: Run) -> tuple[float, float]:
    """Operations on one training image: the student's and the teacher's."""
    student = passes(run.student, run.dataset)
    teacher = passes(run.teacher, run.dataset) if run.teacher else Passes(0, 0)
    match run.method:
        case "dgad":  # both networks in the attack; the teacher then sees x and x'
            return student.attack + 2 * student.training, teacher.attack + 2 * teacher.forward
        case "rslad":  # the teacher sees x once
            return student.attack + 2 * student.training, teacher.forward
        case "trades":  # x twice, x' once, and the attack's target
            return student.attack + student.forward + 3 * student.training, 0.0
        case "pgd-at":  # x' trains; x only moves the running statistics
            return student.attack + student.training + student.forward, 0.0
    raise ValueError(f"expected dgad, rslad, trades or pgd-at, got {run.method}")


def per_epoch(run: Run) -> tuple[float, float, float]:
    """Operations of an epoch: the student's, the teacher's, and PGD-10 on the images it is chosen by."""
    student, teacher = per_image(run)
    own = passes(run.student, run.dataset)
    selection = SELECTED_ON * (own.attack + 2 * own.forward)
    return student * IMAGES[run.dataset], teacher * IMAGES[run.dataset], selection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fp32", type=float, default=19.5, help="nominal peak in TFLOP/s, TF32 off")
    parser.add_argument("--bf16", type=float, default=312.0, help="nominal peak in TFLOP/s, dense")
    parser.add_argument("--share", type=float, default=0.3, help="of the peak that is sustained: an assumption")
    arguments = parser.parse_args()

    print("| network | image | forward, GMAC | attack, 10 steps | training |")
    print("|---|---|---|---|---|")
    seen = {(name, run.dataset): None for run in RUNS for name in (run.student, run.teacher) if name}
    for name, dataset in seen:
        own, size = passes(name, dataset), SIZE[dataset]
        macs = (f"{count / 2e9:.2f}" for count in (own.forward, own.attack, own.training))
        print(f"| `{name}`, {CLASSES[dataset]} classes | {size}x{size} | {' | '.join(macs)} |")

    print()
    print("| method | student | teacher | dataset | PFLOP/epoch | student's | teacher's | selection ", end="")
    print("| epochs | fp32 hours | bf16 hours |")
    print("|---" * 11 + "|")
    for run in RUNS:
        student, teacher, selection = per_epoch(run)
        total = student + teacher + selection
        seconds = [total * run.epochs / (peak * 1e12 * arguments.share) for peak in (arguments.fp32, arguments.bf16)]
        shares = " | ".join(f"{part / total:.1%}" for part in (student, teacher, selection))
        print(
            f"| `{run.method}` | `{run.student}` | {f'`{run.teacher}`' if run.teacher else '-'} | {run.dataset} "
            f"| {total / 1e15:.2f} | {shares} | {run.epochs} | {seconds[0] / 3600:.1f} | {seconds[1] / 3600:.1f} |"
        )


if __name__ == "__main__":
    main()
