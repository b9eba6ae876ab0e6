"""Part `golden`: one step of each method on the card in float64, against the authors' released code."""

import argparse
import sys
from typing import Any

import torch
from torch import Tensor

from card.common import ROOT, device_of


def golden(options: argparse.Namespace) -> None:
    """The vectors in tests/data: x', loss, the student's gradients and running statistics."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from golden import CASES, EPOCH, TOLERANCE, Golden  # type: ignore[import-not-found]

    from dgad_tk.ascent.folded import Inner
    from dgad_tk.methods import Batch, build_method

    device, worst, failed = device_of(options), 0.0, []
    torch.backends.cudnn.allow_tf32 = False
    for name, (method_name, method_options, terms) in CASES.items():
        stored: Any = Golden(name)
        method = build_method(method_name, method_options)
        student, teacher = (
            stored.network(owner).to(device) if owner == "student" or method.needs_teacher else None
            for owner in ("student", "teacher")
        )
        if teacher is not None:
            teacher.eval().requires_grad_(False)
        kept = stored.batch(epoch=EPOCH.get(name, 0))
        batch = Batch(
            kept.x.to(device),
            kept.y.to(device),
            lambda kind, kept=kept: kept.noise(kind).to(device),  # type: ignore[misc]
            kept.nominal_size,
            kept.epoch,
            kept.epochs,
            inner=Inner(),
        )
        step = method.step(student.train(), teacher, batch, stored.threat())
        step.loss.backward()  # type: ignore[no-untyped-call]
        pairs: dict[str, tuple[Tensor, Tensor]] = {
            "x_adv": (step.x_adv, stored["x_adv"]),
            "loss": (step.loss, stored["loss"]),
            "logits": (step.logits, stored["student_logits_adv"]),
            **{ours: (step.terms[ours], stored[theirs]) for ours, theirs in terms.items()},
            "running mean": (student[1].running_mean, stored["bn_trace.running_mean"][-1]),
            "running variance": (student[1].running_var, stored["bn_trace.running_var"][-1]),
        }
        for parameter_name, parameter in student.named_parameters():
            if parameter_name != "0.bias":  # cancels in train-mode BatchNorm
                pairs[f"gradient of {parameter_name}"] = (parameter.grad, stored[f"grad.{parameter_name}"])
        for what, (ours, theirs) in pairs.items():
            apart = float((ours.detach().cpu() - theirs).abs().max() / theirs.abs().max())
            worst = max(worst, apart)
            if not apart <= TOLERANCE:  # NaN too
                failed.append(f"{name}, {what}: apart by {apart:.1e}")
    print(
        f"Golden vectors in float64 on the {device.type}: {len(CASES)} steps, x', losses, terms, gradients and running "
        f"statistics apart by at most {worst:.1e}, relative; at most {TOLERANCE:.0e} passes.\n"
    )
    for line in failed:
        print(f"- {line}")
    if failed:
        print(f"{len(failed)} values are apart by more than {TOLERANCE:.0e}: {failed[0]}", file=sys.stderr)
        sys.exit(1)
