"""Make the golden vectors of `tests/data` once more, with the authors' released code, and compare.

    python tests/support/make_golden.py FOLDER [--write OUT]

FOLDER holds clones of the repositories below under their own names; nothing is fetched here. Weights, images, labels
and noise are taken from the stored files. Everything else follows from the authors' code, which runs as it is, on the
CPU, in float64 and by one thread. Only what surrounds a step is replaced: `.cuda()` does nothing, and noise is the
stored one. `intended.*` is DGAD's loss for MobileNetV2 with one parenthesis moved, from the terms of the same step.
"""

import argparse
import ast
import json
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from golden import DATA, TOLERANCE, Golden
from torch import Tensor, nn

COMMITS = {
    "DGAD": "a0329c860570484e0835108985954f30bbb374ee",  # kunsaram01/DGAD; its main.py holds AdaAD and PGD-AT too
    "RSLAD": "c40e04f6c4edcd87431d0250b168d503b1293745",  # zibojia/RSLAD
    "TRADES": "6e8e11b7c281371c2f027ffadfbaea80361f09de",  # yaodongyu/TRADES
    "MART": "2d83e17b381dd2ee52223695e517bf6d5ff09c2c",  # YisenWang/MART
    "AdversariallyRobustDistillation": "779ade36d612bddb0a5a705fdd74efe7571a1381",  # goldblum
    "IAD": "a8091a8c7552cef43d8f3f28085426cb786ce9d3",  # ZFancy/IAD
}
"""What the vectors were made with, by folder."""

Locals = dict[str, Any]
Formula = Callable[[Locals], Any]


class NoOptimizer:
    """Stands in for the optimiser: gradients are looked at before any step."""

    def zero_grad(self) -> None:
        pass


@dataclass
class Trace:
    """What is seen from outside while a step runs."""

    x: Tensor
    student: nn.Sequential
    start: Tensor | None = None
    losses: list[float] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    forwards: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    inside: bool = False

    def note_forward(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if module.training:
            norm = self.student[1]
            seen = (inputs[0], output, norm.running_mean, norm.running_var)
            self.forwards.append(tuple(tensor.detach().clone() for tensor in seen))  # type: ignore[arg-type]

    def kinds(self, x_adv: Tensor) -> list[str]:
        """Whether each forward saw the clean images, the adversarial ones, or a step of the attack."""
        return [
            "clean" if image.equal(self.x) else "adv" if image.equal(x_adv) else "attack" for image, *_ in self.forwards
        ]


@contextmanager
def surrounded(trace: Trace, noise: Tensor) -> Iterator[None]:
    """Put the stored noise in the place of draws, and keep what the attack asks autograd for."""
    grad = torch.autograd.grad

    def watched(loss: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        if trace.start is None:
            trace.start = inputs[0].detach().clone()
        found = grad(loss, inputs)
        trace.losses.append(float(loss))
        trace.gradients.append(found[0])
        return found

    cross_entropy = nn.CrossEntropyLoss.forward
    with (
        patch.object(torch, "randn", lambda shape: noise.clone()),
        patch.object(Tensor, "uniform_", lambda tensor, low, high: tensor.copy_(noise)),
        patch.object(Tensor, "cuda", lambda tensor: tensor),
        patch.object(Tensor, "float", Tensor.double),
        patch.object(torch.cuda, "synchronize", lambda: None),
        patch.object(torch.autograd, "grad", watched),
        # Madry_PGD hands `size_average` to the call, which no version of torch takes there.
        patch.object(nn.CrossEntropyLoss, "forward", lambda module, a, b, **ignored: cross_entropy(module, a, b)),
        warnings.catch_warnings(action="ignore"),  # `reduce=` and `size_average=` are deprecated
    ):
        handle = trace.student.register_forward_hook(trace.note_forward)
        try:
            yield
        finally:
            handle.remove()


def module_of(path: Path) -> dict[str, Any]:
    """Names of a file that can be imported by itself."""
    module = types.ModuleType(path.stem)
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), module.__dict__)
    return module.__dict__


def class_of(path: Path, name: str, names: Locals) -> Any:
    """One class of a script that cannot be imported, since it trains."""
    (node,) = (each for each in ast.parse(path.read_text(encoding="utf-8")).body if getattr(each, "name", "") == name)
    exec(compile(ast.Module([node], []), path, "exec"), names)
    return names[name]


def step_of(path: Path, names: Locals) -> Locals:
    """Run what a script does with a batch, from the top of its loop over batches up to `loss.backward()`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.For):
            ends = [at for at, line in enumerate(node.body) if ast.unparse(line) == "loss.backward()"]
            if ends:
                exec(compile(ast.Module(node.body[: ends[0]], []), path, "exec"), names)
                return names
    raise SystemExit(f"{path} has no loop with loss.backward()")


def function_step(function: Any, *arguments: Any, **options: Any) -> Locals:
    """Call a function of the authors that returns the loss; its local variables when it returns."""
    kept: Locals = {}

    def watch(frame: types.FrameType, event: str, argument: object) -> None:
        if event == "return" and frame.f_code is function.__code__:
            kept.update(frame.f_locals)

    sys.setprofile(watch)
    try:
        kept["loss"] = function(*arguments, **options)
    finally:
        sys.setprofile(None)
    return kept


def scripts(golden: Golden, student: nn.Module, teacher: nn.Module, **more: Any) -> Locals:
    """Names that the authors' training loops take from outside."""
    size, shared = len(golden["y"]), {"torch": torch, "nn": nn, "F": F, "optimizer": NoOptimizer(), "device": "cpu"}
    options = {"step_size": 2, "num_steps": 10, "epsilon": 8, "bs": size, "temp": 1.0, "alpha": 1.0} | more
    return shared | {
        "args": types.SimpleNamespace(**options),
        "net": student,
        "teacher_net": teacher,
        "inputs": golden["x"],
        "targets": golden["y"],
        "use_cuda": False,
    }


def dgad(folder: Path, golden: Golden, student: nn.Module, teacher: nn.Module) -> Locals:
    config = golden.config
    options: Locals = {
        "method": {"dgad": "DGAD", "adaad": "AdaAD", "pgd_at": "Plain_Madry"}[config["method"]],
        "dataset": f"CIFAR{config['num_classes']}",
        "mixture": False,
        "AdaAD_alpha": config.get("alpha"),
        "alp": "off" if config.get("pcr") == "off" else "on",
        "ALP_beta": config.get("pcr_beta"),
        "model": "mobilenetV2" if "mobilenet" in config.get("loss_form", "") else "resnet18",
    }
    names = scripts(golden, student, teacher, **options) | {"epoch": 0}
    names |= {key: module_of(folder / "DGAD/AT_helper.py")[key] for key in ("adaad_inner_loss", "Madry_PGD")}
    return step_of(folder / "DGAD/main.py", names)


def rslad(folder: Path, golden: Golden, student: nn.Module, teacher: nn.Module) -> Locals:
    path = folder / "RSLAD/resnet18_rslad_cifar10.py"
    names = module_of(folder / "RSLAD/rslad_loss.py") | {
        "student": student,
        "teacher": teacher,
        "optimizer": NoOptimizer(),
        "epsilon": 8 / 255.0,
        "train_batch_data": golden["x"],
        "train_batch_labels": golden["y"],
    }
    class_of(path, "kl_loss", names)
    return step_of(path, names)


def trades(folder: Path, golden: Golden, student: nn.Module, teacher: nn.Module) -> Locals:
    function = module_of(folder / "TRADES/trades.py")["trades_loss"]
    return function_step(function, student, golden["x"], golden["y"], NoOptimizer(), step_size=0.007, beta=6.0)


def mart(folder: Path, golden: Golden, student: nn.Module, teacher: nn.Module) -> Locals:
    return function_step(
        module_of(folder / "MART/mart.py")["mart_loss"], student, golden["x"], golden["y"], NoOptimizer()
    )


def ard(folder: Path, golden: Golden, student: nn.Module, teacher: nn.Module) -> Locals:
    path = folder / "AdversariallyRobustDistillation/main.py"
    names = scripts(golden, student, teacher, temp=30.0) | {
        "KL_loss": nn.KLDivLoss(),
        "XENT_loss": nn.CrossEntropyLoss(),
    }
    return attacked_in_module(path, names, student)


def iad(folder: Path, golden: Golden, student: nn.Module, teacher: nn.Module) -> Locals:
    names = scripts(golden, student, teacher, beta=0.1, begin=60) | {
        "KL_loss": nn.KLDivLoss(reduce=False),
        "XENT_loss": nn.CrossEntropyLoss(),
        "epoch": golden.config["epoch"],
    }
    return attacked_in_module(folder / "IAD/IAD-I.py", names, student)


def attacked_in_module(path: Path, names: Locals, student: nn.Module) -> Locals:
    """A step of the two repositories whose attack is a module around the student."""
    attack = class_of(path, "AttackPGD", names)
    net = attack(student, {"epsilon": 8.0 / 255, "num_steps": 10, "step_size": 2.0 / 255}).train()
    return step_of(path, names | {"net": net, "basic_net": student})


def kl(target: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(target || student) per sample, `(N,)`, of logits."""
    return F.kl_div(F.log_softmax(student / temperature, 1), F.softmax(target / temperature, 1), reduction="none").sum(
        1
    )


RUNS: dict[str, Callable[[Path, Golden, nn.Module, nn.Module], Locals]] = {
    **dict.fromkeys(("dgad", "adaad", "pgd_at"), dgad),
    "rslad": rslad,
    "trades": trades,
    "mart": mart,
    "ard": ard,
    "iad1": iad,
}
"""By the method that a file names."""

TERMS: dict[str, dict[str, Formula]] = {
    "dgad": {
        "term.l_st": lambda at: at["loss_clean"],
        "term.l_at": lambda at: at["loss_adv"],
        "term.pcr": lambda at: at["loss_alp"],
        "teacher_logits_clean_swapped": lambda at: at["t_ori_outputs"],
        "teacher_logits_adv_swapped": lambda at: at["t_adv_outputs"],
        "mask_teacher_wrong": lambda at: at["t_misclassified_group"],
        "mask_adv_swapped": lambda at: at["mask"],
        "n_m": lambda at: np.int64(at["num_lambda"]),
        "kl_per_sample.clean": lambda at: kl(at["t_ori_outputs"], at["ori_outputs"]),
        "kl_per_sample.adv": lambda at: kl(at["t_adv_outputs"], at["adv_outputs"]),
    },
    "adaad": {"term.kl_adv": lambda at: at["kl_loss1"], "term.kl_clean": lambda at: at["kl_loss2"]},
    "pgd_at": {"term.ce_adv": lambda at: at["adv_loss"], "term.ce_clean": lambda at: at["ori_loss"]},
    "rslad": {"term.kl_adv": lambda at: at["kl_Loss1"], "term.kl_clean": lambda at: at["kl_Loss2"]},
    "trades": {"term.ce_clean": lambda at: at["loss_natural"], "term.kl": lambda at: at["loss_robust"]},
    "mart": {
        "term.bce": lambda at: at["loss_adv"],
        "term.robust": lambda at: at["loss_robust"],
        "runner_up": lambda at: at["new_y"],
        "true_class_prob_clean": lambda at: at["true_probs"],
        "kl_per_sample": lambda at: at["kl"](torch.log(at["adv_probs"] + 1e-12), at["nat_probs"]).sum(1),
    },
    "ard": {
        "term.kl": lambda at: kl(at["teacher_outputs"], at["outputs"], 30.0).mean() / at["outputs"].shape[1],
        "term.ce_clean": lambda at: F.cross_entropy(at["basic_outputs"], at["targets"]),
    },
    "iad1": {
        "kl_per_sample.distill": lambda at: kl(at["teacher_outputs"], at["outputs"]),
        "kl_per_sample.introspection": lambda at: kl(at["logits_clean"], at["outputs"]),
        "teacher_weight": lambda at: at["Alpha"],
        "term.ce_clean": lambda at: F.cross_entropy(at["logits_clean"], at["targets"]),
    },
}
"""Local variables of the authors' step, and what follows from them where the code has no name for it."""


def intended_loss(at: Locals) -> Tensor:
    """0.5 [(n_m/n) l_st + ((n-n_m)/n) l_at] + beta pcr; the released expression closes a parenthesis too early."""
    wrong, size = at["num_lambda"], at["args"].bs
    halves = wrong / size * at["loss_clean"] + (size - wrong) / size * at["loss_adv"]
    loss: Tensor = 0.5 * halves + at["args"].ALP_beta * at["loss_alp"]
    return loss


def made(folder: Path, golden: Golden) -> dict[str, Any]:
    """Every array of one file that the authors' step decides."""
    method = golden.config["method"]
    student, teacher = golden.network("student").train(), golden.network("teacher").eval()
    teacher.requires_grad_(False)
    x, trace = golden["x"], Trace(golden["x"], student)
    with surrounded(trace, golden["noise_raw"]):
        at = RUNS[method](folder, golden, student, teacher)
    intended = intended_loss(at) if "intended.loss" in golden.arrays else None
    at["loss"].backward(retain_graph=intended is not None)
    x_adv = next(image for image, *_ in reversed(trace.forwards) if not image.equal(x))
    kinds = trace.kinds(x_adv)
    logits = {kind: trace.forwards[kinds.index(kind)][1] for kind in ("clean", "adv")}
    gradients = torch.stack(trace.gradients)
    sizes = gradients.abs().flatten(1)
    found: dict[str, Any] = {
        "x_init": trace.start,
        "x_adv": x_adv,
        "loss": at["loss"],
        "attack.loss": np.array(trace.losses),
        "attack.grad_sign": gradients.sign().to(torch.int8),
        "attack.min_rel_grad": (sizes.amin(1) / sizes.amax(1)).min(),
        "forward_order": np.array(kinds),
        "bn_trace.running_mean": torch.stack([mean for _, _, mean, _ in trace.forwards]),
        "bn_trace.running_var": torch.stack([variance for *_, variance in trace.forwards]),
        "student_logits_clean": logits["clean"],
        "student_logits_adv": logits["adv"],
        "teacher_logits_clean": teacher(x),
        "teacher_logits_adv": teacher(x_adv),
        "student_after.1.running_mean": student[1].running_mean,
        "student_after.1.running_var": student[1].running_var,
        "student_after.1.num_batches_tracked": student[1].num_batches_tracked,
    }
    found |= {f"grad.{name}": weight.grad for name, weight in student.named_parameters()}
    if intended is not None:
        gradients_of = torch.autograd.grad(intended, list(student.parameters()))
        names = (f"intended.grad.{name}" for name, _ in student.named_parameters())
        found |= {"intended.loss": intended, **dict(zip(names, gradients_of, strict=True))}
    at["logits_clean"] = logits["clean"]
    found |= {name: formula(at) for name, formula in TERMS[method].items() if name in golden.arrays}
    return {name: np.asarray(value.detach() if isinstance(value, Tensor) else value) for name, value in found.items()}


def difference(name: str, found: Any, stored: Any) -> float:
    """Largest difference over the largest stored value; of integers, flags and words, the share that differs."""
    if stored.dtype.kind != "f":
        return float(np.mean(found != stored))
    scale = 1.0 if name.endswith("grad.0.bias") else float(np.abs(stored).max())  # that one is zero up to rounding
    return float(np.abs(found - stored).max()) / (scale or 1.0)


GIVEN = ("config", "x", "y", "eps", "step", "steps", "noise_raw")
"""What no step decides; weights come beside these."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the authors' repositories are")
    parser.add_argument("--write", type=Path, metavar="OUT", help="also write the files made, into this folder")
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    for name, commit in COMMITS.items():
        command = ["git", "-C", str(arguments.folder / name), "rev-parse", "HEAD"]
        here = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if here != commit:
            print(f"{name} is at {here}; the vectors were made with {commit}", file=sys.stderr)
    worst = 0.0
    for path in sorted(DATA.glob("*.npz")):
        golden = Golden(path.stem)
        found = {name: array for name, array in made(arguments.folder, golden).items() if name in golden.arrays}
        left = {
            name
            for name in set(golden.arrays) - set(found)
            if name not in GIVEN and not name.startswith(("student.", "teacher."))
        }
        if left:
            raise SystemExit(f"{path.name}: nothing makes {', '.join(sorted(left))}")
        off = {name: difference(name, array, golden.arrays[name]) for name, array in found.items()}
        name, most = max(off.items(), key=lambda each: each[1])
        worst = max(worst, most)
        print(json.dumps({"file": path.name, "arrays": len(found), "largest difference": most, "in": name}))
        if arguments.write:
            arguments.write.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(arguments.write / path.name, **(golden.arrays | found))
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
