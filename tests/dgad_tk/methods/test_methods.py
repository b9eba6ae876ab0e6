"""What the golden vectors do not reach: edge cases of batches, every switch of DGAD, bad options."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import Golden, close
from torch import nn

from dgad_tk.ascent.balls import ball_of
from dgad_tk.ascent.losses import cross_entropy, kl, swap_label
from dgad_tk.common import UserError
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods import METHODS, Batch, build_method
from dgad_tk.models import build_model

THREAT = ThreatModel(eps=0.1, step_size=0.05, steps=2)


class Fixed(nn.Module):
    """A teacher whose logits are the same for any image: right where `answers` says."""

    def __init__(self, answers: torch.Tensor, classes: int = 10) -> None:
        super().__init__()
        self.logits = nn.functional.one_hot(answers, classes).float() * 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[: len(x)] + 0 * x.flatten(1).sum(1, keepdim=True)


def batch_of(n: int, nominal_size: int = 4) -> Batch:
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(x, torch.arange(n) % 10, lambda kind: torch.zeros_like(x), nominal_size)


def student() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet8", in_channels=1, classes=10).train()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("right", [True, False])
def test_small_batches_and_one_sided_teachers(name: str, n: int, right: bool) -> None:
    """Batches of one and two, a short last one; a teacher right, or wrong, on all of it."""
    net, batch = student(), batch_of(n)
    teacher = Fixed(batch.y if right else (batch.y + 1) % 10).eval()
    step = build_method(name, {}).step(net, teacher, batch, THREAT)
    step.loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(step.loss)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert net.training
    if step.x_adv is not None:
        assert (step.x_adv - batch.x).abs().max() <= THREAT.eps + 1e-6
        assert step.x_adv.min() >= 0
        assert step.x_adv.max() <= 1
    if name == "dgad":
        assert step.terms["l_at" if not right else "l_st"] == 0
        assert step.terms["teacher_wrong"] == (not right)


@pytest.mark.portable
@pytest.mark.usefixtures("double")  # the divergence of an untrained network is 1e-9, rounding of float32
@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("l1", 1)])
def test_training_in_the_other_norms(norm: Any, order: int) -> None:
    # At the image itself the divergence has no gradient, so the start has to be another point.
    drawn = 2 * torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(2)) - 1
    batch = replace(batch_of(4), noise=lambda kind: drawn)
    threat = ThreatModel(norm=norm, eps=0.5, step_size=0.3, steps=3)
    net, ball = student(), ball_of(threat)
    start = ball.project(ball.random_point(batch.x, batch.noise), batch.x)
    with torch.no_grad():
        before = copy.deepcopy(net).eval()
        begun = kl(before(batch.x), before(start))
    x_adv = build_method("trades", {"init": "uniform"}).step(net, None, batch, threat).x_adv
    assert x_adv is not None
    with torch.no_grad():
        # 49 to 565 times; steps the other way leave 0.3 to 19 times for at least one image.
        assert (kl(before(batch.x), before(x_adv)) > 30 * begun).all()
    size = (x_adv - batch.x).flatten(1).norm(p=order, dim=1)
    assert (size <= 0.5 + 1e-5).all()
    assert (size > 0.1).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_teacher_wrong_everywhere_is_clean_distillation_of_the_swapped_teacher() -> None:
    batch = batch_of(4)
    teacher = Fixed((batch.y + 1) % 10).eval()
    net = student()
    step = build_method("dgad", {"pcr_weight": 0}).step(net, teacher, batch, THREAT)
    expected = kl(Fixed(batch.y).logits, student()(batch.x)).mean()
    torch.testing.assert_close(step.loss, expected)


def test_a_short_last_batch_weighs_by_its_true_size() -> None:
    """By default; `divisor=bs` gives the released weights, 1/bs for ST and (bs - n_m)/(bs (n - n_m)) for AT."""
    batch = batch_of(3, nominal_size=8)
    teacher = Fixed(torch.tensor([0, 1, 5])).eval()  # wrong on the last
    for divisor, of_st, of_at in (("n", 1 / 3, 2 / 3), ("bs", 1 / 8, 7 / 8)):
        step = build_method("dgad", {"divisor": divisor, "pcr_weight": 0}).step(student(), teacher, batch, THREAT)
        torch.testing.assert_close(step.loss.detach(), of_st * step.terms["l_st"] + of_at * step.terms["l_at"])


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"map": False}, True),
        ({"els_clean": False}, True),
        ({"els_adv": False}, True),
        ({"pcr_weight": 0.0}, True),
        ({"pcr": "l2norm"}, True),
        ({"pcr": "sq_l2"}, True),
        ({"subset_weights": "equal"}, True),
        ({"mobilenet_loss": "released"}, True),
        ({"mobilenet_loss": "intended"}, True),
        ({"kl_reduction": "elementmean"}, True),
        ({"divisor": "bs"}, False),  # a full batch
        ({"map": True, "els_clean": True, "els_adv": True, "divisor": "n"}, False),
    ],
)
def test_every_switch_switches(options: dict[str, Any], changed: bool) -> None:
    golden = Golden("dgad_resnet")
    step = golden.run(build_method("dgad", {"pcr_weight": 5.0, **options}), golden.network("student"))
    assert close(step.loss.detach(), golden["loss"]) is not changed


def test_switches_against_the_stored_terms() -> None:
    """The parts that the golden file stores per sample give the loss of settings it was not made with."""
    golden = Golden("dgad_resnet")
    wrong, clean, adv = golden["mask_teacher_wrong"], golden["kl_per_sample.clean"], golden["kl_per_sample.adv"]

    def loss(**options: Any) -> torch.Tensor:
        return golden.run(build_method("dgad", options), golden.network("student")).loss.detach()

    assert close(loss(pcr_weight=0, map=False), adv.mean())
    assert close(loss(pcr_weight=0, subset_weights="equal"), clean[wrong].mean() + adv[~wrong].mean())
    assert close(loss(pcr_weight=0, kl_reduction="elementmean"), torch.where(wrong, clean, adv).mean() / 10)
    plain = kl(golden["teacher_logits_adv"], golden["student_logits_adv"])
    assert close(loss(pcr_weight=0, els_adv=False), torch.where(wrong, clean, plain).mean())
    gap = golden["student_logits_adv"].softmax(1) - golden["student_logits_clean"].softmax(1)
    base = torch.where(wrong, clean, adv).mean()
    assert close(loss(pcr_weight=2.0, pcr="sq_l2"), base + 2 * gap.square().sum(1).mean())
    assert close(loss(pcr_weight=2.0, pcr="l2norm"), base + 2 * gap.norm(dim=1).mean())


def test_attacking_only_the_used_samples_leaves_the_others_clean() -> None:
    golden = Golden("dgad_alp_off")
    step = golden.run(build_method("dgad", {"pcr_weight": 0.0, "attack_subset": "used"}), golden.network("student"))
    wrong = golden["mask_teacher_wrong"]
    assert step.x_adv is not None
    assert torch.equal(step.x_adv[wrong], golden["x"][wrong])
    assert close(step.x_adv[~wrong], golden["x_adv"][~wrong])


def test_standard_is_cross_entropy() -> None:
    batch = batch_of(4)
    step = build_method("standard", {}).step(student(), None, batch, THREAT)
    torch.testing.assert_close(step.loss, cross_entropy(student()(batch.x), batch.y).mean())


def test_the_teacher_gets_no_gradient_and_keeps_its_mode() -> None:
    teacher = build_model("resnet8", in_channels=1, classes=10).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    step = build_method("dgad", {}).step(student(), teacher, batch_of(4), THREAT)
    step.loss.backward()  # type: ignore[no-untyped-call]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_method_without_its_teacher_says_so() -> None:
    with pytest.raises(ValueError, match="needs a teacher"):
        build_method("dgad", {}).step(student(), None, batch_of(2), THREAT)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rsald", {}, "unknown method 'rsald'"),
        ("dgad", {"prc_weight": 1}, "no option 'prc_weight' .did you mean 'pcr_weight'"),
        ("dgad", {"pcr": "mean"}, "dgad.pcr: Input should be 'mse_mean'"),
        ("dgad", {"pcr_weight": -1}, "must not be negative"),
        ("dgad", {"attack_subset": "used"}, "needs pcr_weight 0"),
        ("trades", {"beta": "much"}, "trades.beta must be a number, got 'much'"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_method(name, options)


def test_options_may_carry_the_methods_name() -> None:
    assert build_method("dgad", {"dgad.pcr_weight": 3}) == build_method("dgad", {"pcr_weight": 3.0})
    assert replace(build_method("dgad", {}), pcr_weight=3.0) == build_method("dgad", {"pcr_weight": 3.0})


def test_swap_of_a_right_teacher_changes_nothing() -> None:
    batch = batch_of(4)
    logits = Fixed(batch.y).logits
    assert torch.equal(swap_label(logits, batch.y, torch.zeros(4, dtype=torch.bool)), logits)
