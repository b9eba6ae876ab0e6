"""What one training step of DGAD costs here, against a plain step written as the paper's equations read.

The plain step is eager, float32, channels-first, with nothing folded or compiled, but honest: the teacher is frozen,
the inner maximisation asks for the gradient to the images only, and both use the same threads. Ours is `Dgad.step` as
`dgad train` runs it. All variants take turns; ratios are medians over the rounds.

    python benchmarks/train_step.py --pairs resnet18:resnet18,mobilenetv2:resnet18,resnet18:wrn-34-10 --batch-size 16

Also printed: what each lever gives, whether losses and gradients agree on the same x', how the inner objective compares
over 1,000 images when each makes its own x', and the share of the machine's measured matrix-product peak.
"""

import argparse
import copy
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dgad_tk.ascent.folded import Inner, autocast, folded
from dgad_tk.ascent.inner_max import inner_max
from dgad_tk.ascent.losses import kl
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods import Batch, build_method
from dgad_tk.models import build_model
from dgad_tk.models.trained import bare, shared

THREAT = ThreatModel.of("linf", 8 / 255)
PCR_WEIGHT = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="resnet18:resnet18,mobilenetv2:resnet18,resnet18:wrn-34-10")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--objective-images", type=int, default=1000, help="0 leaves that comparison out")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--teacher-in-attack", default="", help="beside exact: linear, none or both")
    parser.add_argument("--precisions", default="fp32,bf16", help="of those: fp32, bf16, bf16+outer")
    parser.add_argument("--only", help="these ways, with ; between, and nothing else; ratios are over the first")
    parser.add_argument("--short", action="store_true", help="nothing but --teacher-in-attack, against exact")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    peaks = {dtype: matrix_peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    print("matrix product peak: " + ", ".join(f"{dtype} {peak / 1e9:.0f} GFLOP/s" for dtype, peak in peaks.items()))
    for pair in arguments.pairs.split(","):
        if not arguments.short:
            compare(*pair.split(":"), arguments, peaks)
        if arguments.teacher_in_attack:
            cheaper(*pair.split(":"), arguments, peaks)


def matrix_peak(dtype: torch.dtype, n: int = 2048) -> float:
    """Floating-point operations a second of the best of many large matrix products."""
    a, b = (torch.rand(n, n).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        begun = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begun)
    return 2 * n**3 / best


# The plain step ------------------------------------------------------------------------------------------------------


def plain_divergence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(T‖S) of each sample."""
    return F.kl_div(F.log_softmax(student_logits, 1), F.softmax(teacher_logits, 1), reduction="none").sum(1)


def plain_attack(student: nn.Module, teacher: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    """x' of equation 4, one iterate after the other."""
    student.eval()
    x_adv = x + 0.001 * noise
    for _ in range(THREAT.steps):
        x_adv = x_adv.detach().requires_grad_()
        loss = plain_divergence(teacher(x_adv), student(x_adv)).sum()
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + THREAT.step_size * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - THREAT.eps), x + THREAT.eps)
        x_adv = x_adv.clamp(0, 1)
    student.train()
    return x_adv.detach()


def plain_loss(student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """Equations 5 to 9, sample by sample where the paper speaks of samples."""
    with torch.no_grad():
        clean, adv = teacher(x), teacher(x_adv)
        wrong = clean.argmax(1) != y
        for logits in (clean, adv):
            for i in range(len(y)):
                top = int(logits[i].argmax())
                if top != int(y[i]):
                    logits[i, [top, int(y[i])]] = logits[i, [int(y[i]), top]]
    of_clean, of_adv = student(x), student(x_adv)
    distilled = torch.where(wrong, plain_divergence(clean, of_clean), plain_divergence(adv, of_adv)).mean()
    return distilled + PCR_WEIGHT * F.mse_loss(F.softmax(of_adv, 1), F.softmax(of_clean, 1))


# The comparison ------------------------------------------------------------------------------------------------------


@dataclass
class Contender:
    """A way to make a step: its nets, and what runs it on images, labels and noise."""

    student: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

    def seconds(self, x: Tensor, y: Tensor, noise: Tensor) -> float:
        begun = time.perf_counter()
        loss = self.loss(x, y, noise, None)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return time.perf_counter() - begun


def drawn(
    student_name: str, teacher_name: str, arguments: argparse.Namespace
) -> tuple[nn.Module, nn.Module, Tensor, Tensor, Tensor]:
    """Both networks, a batch of images and of noise, `(N, 3, size, size)`, and labels `(N,)`."""
    torch.manual_seed(0)
    student, teacher = networks(student_name, teacher_name, arguments.size)
    n, shape = arguments.batch_size, (3, arguments.size, arguments.size)
    return student, teacher, torch.rand(n, *shape), torch.randn(n, *shape), torch.arange(n) % 10


def compare(
    student_name: str, teacher_name: str, arguments: argparse.Namespace, peaks: dict[torch.dtype, float]
) -> None:
    """Time all variants on one pair of networks, and hold ours against the plain one."""
    student, teacher, x, noise, y = drawn(student_name, teacher_name, arguments)
    n = len(x)
    contenders = {
        "plain": plain(student, teacher),
        "ours fp32": ours(student, teacher, Inner()),
        "ours bf16": ours(student, teacher, Inner("bf16")),
        "ours bf16, outer too": ours(student, teacher, Inner("bf16"), outer="bf16"),
    }
    if arguments.compile:
        contenders["ours fp32, compiled"] = ours(student, teacher, Inner("fp32", compiled=True))
        contenders["ours bf16, compiled"] = ours(student, teacher, Inner("bf16", compiled=True))
    if arguments.only:
        contenders = {name: contenders[name] for name in arguments.only.split(";")}
    base = next(iter(contenders))
    for contender in contenders.values():
        contender.seconds(x, y, noise)
    rounds = [
        {name: contender.seconds(x, y, noise) for name, contender in contenders.items()}
        for _ in range(arguments.repeats)
    ]
    work = operations(student_name, teacher_name, n, arguments.size)
    print(f"\n{student_name} from {teacher_name}, batch {n}: {work / 1e9:.0f} GFLOP a step, {arguments.repeats} rounds")
    print(f"{'':<24}{'s a step':>10}{'ratio':>8}{'min':>7}{'max':>7}{'of peak':>9}")
    for name in contenders:
        ratios = [round_[base] / round_[name] for round_ in rounds]
        seconds = statistics.median(round_[name] for round_ in rounds)
        peak = peaks[torch.bfloat16 if "bf16" in name else torch.float32]
        print(
            f"{name:<24}{seconds:>10.3f}{statistics.median(ratios):>8.2f}{min(ratios):>7.2f}{max(ratios):>7.2f}"
            f"{work / seconds / peak:>9.0%}",
            flush=True,
        )
    levers(student, teacher, x, noise, arguments.repeats)
    agreement(student, teacher, x, y, noise)
    if arguments.objective_images:
        objectives(student, teacher, arguments.objective_images, n, (3, arguments.size, arguments.size))


def cheaper(
    student_name: str, teacher_name: str, arguments: argparse.Namespace, peaks: dict[torch.dtype, float]
) -> None:
    """Images/s of DGAD by how its attack asks the teacher, in each precision; ratios are of the exact attack."""
    student, teacher, x, noise, y = drawn(student_name, teacher_name, arguments)
    n = len(x)
    kinds = ["exact", *arguments.teacher_in_attack.split(",")]
    print(f"\n{student_name} from {teacher_name}, batch {n}, the teacher in the attack, {arguments.repeats} rounds")
    print(f"{'':<24}{'images/s':>10}{'ratio':>8}{'min':>7}{'max':>7}{'GFLOP':>9}{'of peak':>9}")
    for precision in arguments.precisions.split(","):
        kind_of_inner, outer = precision.removesuffix("+outer"), "bf16" if precision.endswith("+outer") else "fp32"
        inner = Inner(kind_of_inner)  # type: ignore[arg-type]
        contenders = {kind: ours(student, teacher, inner, outer, teacher_in_attack=kind) for kind in kinds}
        for contender in contenders.values():
            contender.seconds(x, y, noise)
        rounds: list[dict[str, float]] = []
        for _ in range(arguments.repeats):
            rounds.append({kind: each.seconds(x, y, noise) for kind, each in contenders.items()})
            took = ", ".join(f"{kind} {seconds:.3f} s" for kind, seconds in rounds[-1].items())
            print(f"{precision}, round {len(rounds)}: {took}", file=sys.stderr, flush=True)  # in case it is cut off
        peak = peaks[torch.bfloat16 if "bf16" in precision else torch.float32]
        for kind in kinds:
            ratios = [each["exact"] / each[kind] for each in rounds]
            seconds = statistics.median(each[kind] for each in rounds)
            work = operations(student_name, teacher_name, n, arguments.size, kind)
            print(
                f"{precision + ' ' + kind:<24}{n / seconds:>10.1f}{statistics.median(ratios):>8.2f}{min(ratios):>7.2f}"
                f"{max(ratios):>7.2f}{work / 1e9:>9.0f}{work / seconds / peak:>9.0%}",
                flush=True,
            )


def networks(student_name: str, teacher_name: str, size: int) -> tuple[nn.Module, nn.Module]:
    """Student and teacher with BatchNorm statistics of their own, and a teacher that is right now and then."""
    student = build_model(student_name, in_channels=3, classes=10)
    teacher = build_model(teacher_name, in_channels=3, classes=10)
    with torch.no_grad():
        for net in (student, teacher):
            net.train()(torch.rand(64, 3, size, size))
    return student, teacher.eval().requires_grad_(False)


def plain(student: nn.Module, teacher: nn.Module) -> Contender:
    net, guide = copy.deepcopy(student).train(), copy.deepcopy(teacher)

    def loss(x: Tensor, y: Tensor, noise: Tensor, x_adv: Tensor | None) -> Tensor:
        return plain_loss(net, guide, x, y, plain_attack(net, guide, x, noise) if x_adv is None else x_adv)

    return Contender(net, sgd(net), loss)


def ours(
    student: nn.Module, teacher: nn.Module, inner: Inner, outer: str = "fp32", teacher_in_attack: str = "exact"
) -> Contender:
    net = shared(copy.deepcopy(student).train())
    guide = inner.view(copy.deepcopy(teacher))
    method = build_method("dgad", {"pcr_weight": PCR_WEIGHT, "teacher_in_attack": teacher_in_attack})

    def loss(x: Tensor, y: Tensor, noise: Tensor, x_adv: Tensor | None) -> Tensor:
        with autocast(outer, x.device):
            batch = Batch(x, y, lambda kind: noise, len(x), x_adv=x_adv, inner=inner)
            return method.step(net, guide, batch, THREAT).loss

    return Contender(bare(net), sgd(net), loss)


def sgd(net: nn.Module) -> torch.optim.SGD:
    """As in the paper, but a rate so small that the networks stay where they are."""
    return torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)


def operations(student_name: str, teacher_name: str, n: int, size: int, teacher_in_attack: str = "exact") -> float:
    """Floating-point operations of a step: what its convolutions and products need, counted, not measured."""
    costs = {}
    for name in (student_name, teacher_name):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            build_model(name, in_channels=3, classes=10).eval()(torch.rand(n, 3, size, size))
        costs[name] = counter.get_total_flops()
    student, teacher = costs[student_name], costs[teacher_name]
    # A gradient to the images, or to the weights, costs as much as a forward pass.
    asked = {"exact": THREAT.steps * 2, "linear": 1, "none": 0}[teacher_in_attack]
    return THREAT.steps * 2 * student + asked * teacher + 2 * 3 * student + 2 * teacher


def levers(student: nn.Module, teacher: nn.Module, x: Tensor, noise: Tensor, repeats: int) -> None:
    """One gradient step of the attack, with one lever more in each line."""
    student = copy.deepcopy(student).eval().requires_grad_(False)
    last = {"memory_format": torch.channels_last}
    nets: dict[str, tuple[nn.Module, nn.Module, str]] = {
        "plain": (student, teacher, "fp32"),
        "channels-last": (copy.deepcopy(student).to(**last), copy.deepcopy(teacher).to(**last), "fp32"),  # type: ignore[call-overload]
        "and BatchNorm folded": (folded(student), folded(teacher), "fp32"),
        "and bf16": (folded(student), folded(teacher), "bf16"),
    }

    def seconds(name: str) -> float:
        net, guide, precision = nets[name]
        begun = time.perf_counter()
        with autocast(precision, x.device):
            images = (x + 0.001 * noise).contiguous(**({} if name == "plain" else last)).requires_grad_()  # type: ignore[arg-type]
            torch.autograd.grad(kl(guide(images).float(), net(images).float()).sum(), images)
        return time.perf_counter() - begun

    for name in nets:
        seconds(name)
    rounds = [{name: seconds(name) for name in nets} for _ in range(repeats)]
    found = {name: statistics.median(each["plain"] / each[name] for each in rounds) for name in nets}
    print("one gradient of the attack: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in found.items()))


def agreement(student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> None:
    """Loss and gradients on the same x', relative to the plain ones."""
    reference, fast = plain(student, teacher), ours(student, teacher, Inner())
    x_adv = plain_attack(reference.student, teacher, x, noise)
    losses = []
    for contender in (reference, fast):
        loss = contender.loss(x, y, noise, x_adv)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
    pairs = [(a.grad, b.grad) for a, b in zip(reference.student.parameters(), fast.student.parameters(), strict=True)]
    total = torch.sqrt(sum((a.square().sum() for a, _ in pairs), torch.zeros(())))
    apart = torch.sqrt(sum(((a - b).square().sum() for a, b in pairs), torch.zeros(())))
    print(
        f"on the same x': loss apart by {abs(losses[0] - losses[1]) / losses[0]:.1e}, "
        f"gradient by {apart / total:.1e}, relative"
    )


def objectives(student: nn.Module, teacher: nn.Module, images: int, n: int, shape: tuple[int, ...]) -> None:
    """Mean KL(T(x')‖S(x')) reached by each attack from the same starts, judged by the plain networks."""
    student = copy.deepcopy(student).eval().requires_grad_(False)
    reached: dict[str, list[Tensor]] = {"plain": [], "fp32": [], "bf16": []}
    for start in range(0, images, n):
        generator = torch.Generator().manual_seed(start)
        size = min(n, images - start)
        x, noise = torch.rand(size, *shape, generator=generator), torch.randn(size, *shape, generator=generator)
        made = {"plain": plain_attack(student, teacher, x, noise)}
        student.eval()
        for precision in ("fp32", "bf16"):
            inner = Inner(precision)  # type: ignore[arg-type]
            net, guide = inner.view(student), inner.view(teacher)
            with inner.context(x.device):
                made[precision] = inner_max(
                    lambda z, net=net, guide=guide: kl(guide(z), net(z)),  # type: ignore[misc]
                    x,
                    x + 0.001 * noise,
                    THREAT,
                )
        with torch.no_grad():
            for name, x_adv in made.items():
                reached[name].append(kl(teacher(x_adv), student(x_adv)))
    means = {name: float(torch.cat(values).double().mean()) for name, values in reached.items()}
    apart = ", ".join(f"{name} {means[name] / means['plain'] - 1:+.3%}" for name in ("fp32", "bf16"))
    print(f"inner objective over {images} images against the plain attack's: {apart}")


if __name__ == "__main__":
    main()
