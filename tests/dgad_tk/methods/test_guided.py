"""What stands for the teacher in an attack that asks it: the formula written out, the passes counted, the odd cases."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from golden import Golden, close
from shared import randomise_batch_norm
from torch import Tensor, nn

from dgad_tk.ascent.folded import Inner
from dgad_tk.common import UserError
from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods import METHODS, Batch, build_method
from dgad_tk.methods.guided import Guided
from dgad_tk.models import build_model
from dgad_tk.models.trained import InParts

GUIDED = [name for name, method in METHODS.items() if issubclass(method, Guided)]
GOLDEN = Golden("dgad_resnet")
STEPS = 3
THREAT = ThreatModel(eps=0.05, step_size=0.03, steps=STEPS)
ALONE: dict[str, dict[str, Any]] = {"adaad": {"alpha": 0.5}}
"""Options under which the loss asks for T(x) too."""


def test_the_methods_that_ask() -> None:
    assert GUIDED == ["adaad", "adaiad", "dgad"]


def probabilities(logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum()


def objective(student: nn.Module, teacher_logits: Tensor, image: Tensor) -> Tensor:
    """KL(T‖S) of one image, as a sum over classes."""
    p, q = probabilities(teacher_logits), probabilities(student(image[None])[0])
    terms = [p[k] * (p[k].log() - q[k].log()) for k in range(len(p))]
    return torch.stack(terms).sum()


def teacher_logits(kind: str, teacher: nn.Module, x: Tensor, y: int, image: Tensor) -> Tensor:
    """What stands for t(x') by the definition, of one image."""
    if kind == "exact":
        return teacher(image[None])[0]
    with torch.no_grad():
        clean = teacher(x[None])[0]
    if kind == "none":
        return clean
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(teacher(point[None])[0, y], point)
    rise = torch.tensordot(slope, image - x, dims=3)
    return torch.stack([clean[k] + rise if k == y else clean[k] for k in range(len(clean))])


@pytest.mark.parametrize("kind", ["exact", "linear", "none"])
@pytest.mark.parametrize("name", GUIDED)
def test_the_attack_climbs_the_formula(name: str, kind: str) -> None:
    n = 4
    x, y, noise = GOLDEN["x"][:n], GOLDEN["y"][:n], GOLDEN["noise_raw"][:n]
    student, teacher = GOLDEN.network("student"), GOLDEN.network("teacher").eval().requires_grad_(False)
    method = build_method(name, {"teacher_in_attack": kind})
    step = method.step(student.train(), teacher, Batch(x, y, lambda _: noise, n), THREAT)

    evaluated, found = GOLDEN.network("student").eval(), []
    for image, label, draw in zip(x, y.tolist(), noise, strict=True):
        adv = image + 0.001 * draw
        for _ in range(STEPS):
            adv = adv.detach().requires_grad_()
            standing = teacher_logits(kind, teacher, image, label, adv)
            (gradient,) = torch.autograd.grad(objective(evaluated, standing, adv), adv)
            moved = adv.detach() + THREAT.step_size * gradient.sign()
            adv = torch.minimum(torch.maximum(moved, image - THREAT.eps), image + THREAT.eps).clamp(0, 1)
        found.append(adv)
    assert step.x_adv is not None
    assert close(step.x_adv, torch.stack(found))


def test_the_three_attacks_differ() -> None:
    """Else the comparison above could not tell them apart."""
    made = []
    for kind in ("exact", "linear", "none"):
        method = build_method("dgad", {"teacher_in_attack": kind})
        made.append(GOLDEN.run(method, GOLDEN.network("student")).x_adv)
    assert not any(torch.equal(one, other) for one, other in ((made[0], made[1]), (made[0], made[2]), made[1:]))


@pytest.mark.parametrize("name", GUIDED)
def test_exact_is_the_default_and_what_it_was(name: str) -> None:
    assert build_method(name, {}) == build_method(name, {"teacher_in_attack": "exact"})


class Counted(nn.Module):
    """A teacher that counts the images it answers, and those whose gradient is asked for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.forward_images, self.backward_images = net, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forward_images += len(x)
        logits = self.net(x)
        if logits.requires_grad:
            logits.register_hook(self._note)
        return logits

    def _note(self, gradient: Tensor) -> None:
        self.backward_images += len(gradient)


@pytest.mark.parametrize(
    ("name", "kind", "passes"),
    [
        ("dgad", "exact", (STEPS + 2, STEPS)),
        ("dgad", "linear", (2, 1)),
        ("dgad", "none", (2, 0)),
        ("adaad", "exact", (STEPS + 1, STEPS)),
        ("adaad", "linear", (2, 1)),
        ("adaad", "none", (2, 0)),
        ("adaad with T(x)", "exact", (STEPS + 2, STEPS)),
        ("adaad with T(x)", "linear", (2, 1)),
        ("adaad with T(x)", "none", (2, 0)),
        ("adaiad", "exact", (STEPS + 1, STEPS)),
        ("adaiad", "linear", (2, 1)),
        ("adaiad", "none", (2, 0)),
    ],
)
def test_passes_of_the_teacher(name: str, kind: str, passes: tuple[int, int]) -> None:
    """A pass is one image through the teacher: those of the attack, T(x') of the loss, and T(x) if it needs it."""
    base, _, more = name.partition(" with ")
    options = {"teacher_in_attack": kind} | ({"alpha": 0.5} if more else {})
    teacher = Counted(GOLDEN.network("teacher").eval().requires_grad_(False))
    batch = GOLDEN.batch()
    build_method(base, options).step(GOLDEN.network("student").train(), teacher, batch, THREAT)
    assert (teacher.forward_images / len(batch.x), teacher.backward_images / len(batch.x)) == passes


def test_given_images_cost_no_slope() -> None:
    """The second pass of adversarial weight perturbation has its x' already."""
    teacher = Counted(GOLDEN.network("teacher").eval().requires_grad_(False))
    batch = replace(GOLDEN.batch(), x_adv=GOLDEN["x_adv"])
    method = build_method("adaad", {"teacher_in_attack": "linear"})
    method.step(GOLDEN.network("student").train(), teacher, batch, THREAT)
    assert (teacher.forward_images / len(batch.x), teacher.backward_images) == (1, 0)


@pytest.mark.parametrize("kind", ["linear", "none"])
def test_attacking_only_the_used_samples_gives_them_the_same_images(kind: str) -> None:
    options = {"pcr_weight": 0.0, "teacher_in_attack": kind}
    golden = Golden("dgad_alp_off")
    everyone = golden.run(build_method("dgad", options), golden.network("student")).x_adv
    used = golden.run(build_method("dgad", options | {"attack_subset": "used"}), golden.network("student")).x_adv
    wrong = golden["mask_teacher_wrong"]
    assert everyone is not None
    assert used is not None
    assert torch.equal(used[wrong], golden["x"][wrong])
    assert close(used[~wrong], everyone[~wrong])


class Steep(nn.Module):
    """A teacher whose slope is infinite at a black pixel, and NaN at a grey one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 640).reshape(10, 64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        first = flat[:, :1].sqrt()
        second = (flat[:, 1:2] - 0.5).square().sqrt()
        return torch.cat([first, second, flat[:, 2:]], dim=1) @ self.weight.T


@pytest.mark.parametrize("name", GUIDED)
def test_a_slope_that_is_not_finite_leaves_the_rest_of_the_image(name: str) -> None:
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0], x[1, 0, 0, 1] = 0.0, 0.5
    teacher, y = Steep().eval(), torch.tensor([1, 2, 3])
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(teacher(point).gather(1, y[:, None]).sum(), point)
    assert slope.isinf().any()
    assert slope.isnan().any()
    torch.manual_seed(0)
    student = build_model("resnet8", in_channels=1, classes=10).train()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    method = build_method(name, {"teacher_in_attack": "linear"})
    step = method.step(student, teacher, Batch(x, y, lambda _: noise, 3), THREAT)
    assert step.x_adv is not None
    assert torch.isfinite(step.x_adv).all()
    assert torch.isfinite(step.loss)
    changed = (step.x_adv - x).abs().flatten(1)
    assert ((changed > THREAT.step_size / 2).sum(dim=1) > 32).all()  # the start alone is a thousandth away


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def made(kind: str, inner: Inner, *, folded: bool) -> Tensor:
    torch.manual_seed(0)
    student = build_model("resnet8", in_channels=3, classes=10).train()
    teacher = build_model("resnet8", in_channels=3, classes=10).eval().requires_grad_(False)
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    batch = Batch(x, torch.arange(4), lambda _: noise, 4, inner=inner)
    seen = inner.view(teacher) if folded else teacher
    x_adv = build_method("dgad", {"teacher_in_attack": kind}).step(student, seen, batch, THREAT).x_adv
    assert x_adv is not None
    return x_adv


@pytest.mark.portable
@pytest.mark.parametrize("kind", ["linear", "none"])
def test_a_folded_teacher_and_bfloat16_give_nearly_the_same_images(kind: str) -> None:
    with threads(1):
        plain = made(kind, Inner(), folded=False)
        for inner, least in ((Inner(), 0.97), (Inner("bf16"), 0.8)):
            other = made(kind, inner, folded=True)
            assert (other == plain).double().mean() > least


@pytest.mark.portable
@pytest.mark.parametrize(("precision", "least", "gap"), [("fp32", 0.9999, 1e-4), ("bf16", 0.95, 0.05)])
def test_the_slope_of_a_folded_teacher(precision: Literal["fp32", "bf16"], least: float, gap: float) -> None:
    """As a run has it: folded, asked in parts, of images that are not square, in the precision of the attack."""
    torch.manual_seed(0)
    net = randomise_batch_norm(build_model("resnet8", in_channels=3, classes=10)).eval().requires_grad_(False)
    x, y = torch.rand(6, 3, 12, 20), torch.arange(6)
    low: list[bool] = []
    inner = Inner(precision)
    view = inner.view(net)  # before the hook, with which it would not be folded
    net.register_forward_pre_hook(lambda module, inputs: low.append(torch.is_autocast_enabled("cpu")))
    with threads(1):
        batch = Batch(x, y, lambda kind: torch.zeros_like(x), 6, inner=inner, most=4)
        method: Any = build_method("adaad", {"teacher_in_attack": "linear"})
        guide = method.guide(InParts(view, 4), batch)
        method.guide(net, batch)
    assert low == [precision == "bf16"] * 2  # two parts, each once
    exact, point = copy.deepcopy(net).double(), x.double().requires_grad_()
    logits = exact(point)
    (slope,) = torch.autograd.grad(logits[torch.arange(6), y].sum(), point)
    assert guide.slope is not None
    assert guide.clean is not None
    assert guide.slope.dtype == guide.clean.dtype == torch.float32
    assert not guide.slope.requires_grad
    cosine = nn.functional.cosine_similarity(guide.slope.double().flatten(1), slope.flatten(1))
    assert cosine.min() > least
    assert (guide.clean - logits).abs().max() < gap * logits.abs().max()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in GUIDED])
def test_a_method_that_does_not_ask_refuses(name: str) -> None:
    with pytest.raises(UserError, match=f"method '{name}' has no option 'teacher_in_attack'") as caught:
        build_method(name, {"teacher_in_attack": "linear"})
    assert caught.value.hint == "it is an option of adaad, adaiad, dgad"


def test_a_wrong_choice_is_one_line() -> None:
    with pytest.raises(UserError, match="adaad.teacher_in_attack: Input should be 'exact', 'linear' or 'none'"):
        build_method("adaad", {"teacher_in_attack": "half"})
