"""The methods and switches that no golden vector covers, against their formulas written out once more in float64.

Nothing here uses the losses of the package: each formula is softmax, logarithm and sum. The networks, the images and x'
are those of a golden file.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from golden import Golden, close, forward_trace
from torch import Tensor, nn

from dgad_tk.config.threat import ThreatModel
from dgad_tk.methods import Batch, Method, Step, build_method

K, EPOCH, EPOCHS = 10, 60, 200
Net = Callable[[Tensor], Tensor]
Formula = Callable[[Net, Net, Tensor, Tensor, Tensor], Tensor]
"""Student, teacher, x, x' and y to the loss. It calls the student in the order that the method's docstring states."""

GOLDEN = Golden("dgad_resnet")


def test_the_golden_batch_exercises_every_branch() -> None:
    """A teacher right and wrong on x and on x', in all four combinations."""
    teacher, y = GOLDEN.network("teacher").eval(), GOLDEN["y"]
    on_clean = (teacher(GOLDEN["x"]).argmax(1) == y).tolist()
    on_adv = (teacher(GOLDEN["x_adv"]).argmax(1) == y).tolist()
    assert len(set(zip(on_clean, on_adv, strict=True))) == 4


def log_softmax(z: Tensor) -> Tensor:
    return z - z.exp().sum(dim=1, keepdim=True).log()


def softmax(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(dim=1, keepdim=True)


def onehot(y: Tensor) -> Tensor:
    return torch.eye(K, dtype=torch.float64)[y]


def smoothed(y: Tensor, mass: float) -> Tensor:
    return (1 - mass) * onehot(y) + mass / K


def ce(z: Tensor, target: Tensor) -> Tensor:
    """Of logits against probabilities, a sample."""
    return -(target * log_softmax(z)).sum(dim=1)


def divergence(p: Tensor, z: Tensor) -> Tensor:
    """KL(P‖softmax(z)) of probabilities and logits, a sample; 0 log 0 is 0."""
    safe = torch.where(p > 0, p, 1.0)
    return (p * (safe.log() - log_softmax(z))).sum(dim=1)


def silently(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)


def standard(s: Net, t: Net, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
    return ce(s(x), onehot(y)).mean()


def pgd_at(s: Net, t: Net, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
    loss = ce(s(adv), onehot(y)).mean()
    silently(s, x)
    return loss


def trades(s: Net, t: Net, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
    natural, robust, again = s(x), s(adv), s(x)
    return ce(natural, onehot(y)).mean() + 3 * divergence(softmax(again), robust).mean()


def alp(weight: float, mass: float) -> Formula:
    def loss(s: Net, t: Net, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
        natural, robust = s(x), s(adv)
        label = smoothed(y, mass)
        pairing = ((natural - robust) ** 2).sum() / (len(x) * K)
        return (ce(natural, label).mean() + ce(robust, label).mean()) / 2 + weight * pairing

    return loss


def score(*, beta: float = 6.0, c: float = 0.3, mass: float = 0.0) -> Formula:
    def loss(s: Net, t: Net, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
        robust, natural = s(adv), s(x)
        # The paper's own smoothing, whose mass goes to the other classes.
        label = (1 - K * mass / (K - 1)) * onehot(y) + mass / (K - 1)
        total = ((softmax(natural) - label) ** 2).sum(1) + beta * ((softmax(robust) - softmax(natural)) ** 2).sum(1)
        bound = c**2 + c**2 / (K - 1)
        return (total - bound).clamp(min=0).mean() if c else total.mean()

    return loss


def kd(alpha: float, tau: float) -> Formula:
    def loss(s: Net, t: Net, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
        z = s(x)
        return alpha * tau**2 * divergence(softmax(t(x) / tau), z / tau).mean() + (1 - alpha) * ce(z, onehot(y)).mean()

    return loss


def akd(lam: float, tau: float, sees: str) -> Formula:
    def loss(s: Net, t: Net, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
        answer = softmax(t(adv if sees == "adv" else x) / tau)
        return ce(s(adv), lam * answer + (1 - lam) * onehot(y)).mean()

    return loss


def ard(alpha: float, tau: float) -> Formula:
    def loss(s: Net, t: Net, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
        robust, natural = s(adv), s(x)
        distilled = alpha * tau**2 * divergence(softmax(t(x) / tau), robust / tau).mean()
        return distilled + (1 - alpha) * ce(natural, onehot(y)).mean()

    return loss


def trust(t: Net, adv: Tensor, y: Tensor, beta: float) -> Tensor:
    return (softmax(t(adv)) * onehot(y)).sum(1) ** beta


def iad(alpha: float, tau: float, beta: float, *, begun: bool, weighted: bool = False, detach: bool = False) -> Formula:
    def loss(s: Net, t: Net, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
        robust = s(adv)
        silently(s, adv)
        a = trust(t, adv, y, beta)
        distilled = divergence(softmax(t(x) / tau), robust / tau) * (a if weighted else 1)
        total = alpha * tau**2 * distilled.mean()
        if begun:
            own = softmax(s(x))
            total = total + alpha * ((1 - a) * divergence(own.detach() if detach else own, robust)).mean()
        return total + (1 - alpha) * ce(s(x), onehot(y)).mean()

    return loss


def adaiad(alpha: float, tau: float, beta: float, *, begun: bool, classes: int = 1) -> Formula:
    def loss(s: Net, t: Net, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
        silently(s, x)
        robust = s(adv)
        total = alpha * tau**2 * divergence(softmax(t(adv) / tau), robust / tau).mean() / classes
        if begun:
            own = softmax(s(x))
            total = total + alpha * ((1 - trust(t, adv, y, beta)) * divergence(own, robust)).mean() / classes
        return total + (1 - alpha) * ce(s(x), onehot(y)).mean()

    return loss


def rslad(scale: float) -> Formula:
    def loss(s: Net, t: Net, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
        robust, natural, target = s(adv), s(x), softmax(t(x))
        return scale * (5 * divergence(target, robust) + divergence(target, natural)).mean() / 6

    return loss


def adaad(alpha: float) -> Formula:
    def loss(s: Net, t: Net, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
        natural, robust = s(x), s(adv)
        on_adv, on_clean = divergence(softmax(t(adv)), robust).mean(), divergence(softmax(t(x)), natural).mean()
        return alpha * on_adv + (1 - alpha) * on_clean

    return loss


def corrected(p: Tensor, y: Tensor, mode: str, amount: float) -> Tensor:
    """Probabilities of a teacher, put right row by row where its answer is wrong."""
    rows = p.clone()
    for i, label in enumerate(y.tolist()):
        top = int(p[i].argmax())
        if top == label:
            continue
        if mode == "swap":
            rows[i, label], rows[i, top] = p[i, top], p[i, label]
        else:
            rows[i] = amount / K if mode == "smooth" else (1 - amount) * p[i]
            rows[i, label] += 1 - amount if mode == "smooth" else amount
    return rows


def dgad(
    *, map: bool, els_clean: bool, els_adv: bool, pcr: float = 5.0, mode: str = "swap", amount: float = 0.0
) -> Formula:
    def loss(s: Net, t: Net, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
        natural, robust = s(x), s(adv)
        of_clean, of_adv = softmax(t(x)), softmax(t(adv))
        wrong = of_clean.argmax(1) != y
        if els_clean:
            of_clean = corrected(of_clean, y, mode, amount)
        if els_adv:
            of_adv = corrected(of_adv, y, mode, amount)
        terms = []
        for i in range(len(y)):
            row = slice(i, i + 1)
            clean = bool(map and wrong[i])
            terms.append(divergence((of_clean if clean else of_adv)[row], (natural if clean else robust)[row]))
        consistency = ((softmax(robust) - softmax(natural)) ** 2).sum() / (len(y) * K)
        return torch.cat(terms).sum() / len(y) + pcr * consistency

    return loss


def with_igdm(base: Formula, weight: float, share: float) -> Formula:
    def loss(s: Net, t: Net, x: Tensor, adv: Tensor, y: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def noted(images: Tensor) -> Tensor:
            logits = s(images)
            if images is adv:
                seen.append(logits)
            return logits

        total = base(noted, t, x, adv, y)
        mirrored = x - (adv - x)
        slope_t, slope_s = t(adv) - t(mirrored), seen[0] - s(mirrored)
        return total + weight * share * divergence(softmax(slope_t), slope_s).mean()

    return loss


FULL = {"map": True, "els_clean": True, "els_adv": True}
TABLE_2: dict[str, tuple[str, dict[str, Any], int, Formula]] = {
    "dgad "
    + " ".join(f"{key}={value:g}" for key, value in zip(("map", "els_clean", "els_adv", "pcr"), row, strict=True)): (
        "dgad",
        {"map": row[0], "els_clean": row[1], "els_adv": row[2], "pcr_weight": float(row[3])},
        EPOCH,
        dgad(map=row[0], els_clean=row[1], els_adv=row[2], pcr=row[3]),
    )
    for row in product((False, True), (False, True), (False, True), (0, 5))
}
"""Name to method, options, epoch and formula. The paper's rows are among these sixteen, ELS(x') without MAP too."""

CASES: dict[str, tuple[str, dict[str, Any], int, Formula]] = TABLE_2 | {
    "standard": ("standard", {}, 0, standard),
    "pgd-at": ("pgd-at", {}, 0, pgd_at),
    "trades": ("trades", {"beta": 3}, 0, trades),
    "alp": ("alp", {}, 0, alp(1.0, 0.0)),
    "alp as on ImageNet": ("alp", {"weight": 0.5, "label_smoothing": 0.1}, 0, alp(0.5, 0.1)),
    "score": ("score", {}, 0, score()),
    "score without bound": ("score", {"clip": 0, "beta": 4}, 0, score(c=0, beta=4)),
    "score wide bound": ("score", {"clip": 0.9}, 0, score(c=0.9)),
    "score smoothed": ("score", {"label_smoothing": 0.2}, 0, score(mass=0.2)),
    "kd": ("kd", {}, 0, kd(0.9, 4.0)),
    "kd of labels": ("kd", {"alpha": 0.0}, 0, kd(0.0, 4.0)),
    "kd at one": ("kd", {"alpha": 0.3, "temperature": 1.0}, 0, kd(0.3, 1.0)),
    "akd": ("akd", {}, 0, akd(0.5, 1.0, "adv")),
    "akd soft": ("akd", {"lam": 0.3, "temperature": 5.0}, 0, akd(0.3, 5.0, "adv")),
    "akd clean": ("akd", {"lam": 1.0, "teacher_input": "clean"}, 0, akd(1.0, 1.0, "clean")),
    "akd of labels": ("akd", {"lam": 0.0}, 0, akd(0.0, 1.0, "adv")),
    "ard with labels": ("ard", {"alpha": 0.7, "temperature": 5.0}, 0, ard(0.7, 5.0)),
    "iad before": ("iad", {"alpha": 0.7, "temperature": 2.0}, 59, iad(0.7, 2.0, 0.1, begun=False)),
    "iad begun": ("iad", {"alpha": 0.7, "temperature": 2.0, "beta": 0.5}, 60, iad(0.7, 2.0, 0.5, begun=True)),
    "iad as printed": (
        "iad",
        {"teacher_weighted": True, "introspection_detach": True},
        60,
        iad(1.0, 1.0, 0.1, begun=True, weighted=True, detach=True),
    ),
    "adaiad before": ("adaiad", {"alpha": 0.6}, 59, adaiad(0.6, 30.0, 0.1, begun=False)),
    "adaiad begun": ("adaiad", {"alpha": 0.6, "temperature": 3.0}, 60, adaiad(0.6, 3.0, 0.1, begun=True)),
    "adaiad alone": ("adaiad", {"beta": 1.0}, 199, adaiad(1.0, 30.0, 1.0, begun=True)),
    "adaiad from epoch 70": ("adaiad", {"begin": 70}, 69, adaiad(1.0, 30.0, 0.1, begun=False)),
    "adaiad by element": (
        "adaiad",
        {"kl_reduction": "elementmean", "alpha": 0.5},
        60,
        adaiad(0.5, 30.0, 0.1, begun=True, classes=K),
    ),
    "rslad x10": ("rslad", {"scale": 10.0}, 0, rslad(10.0)),
    "adaad alpha 0": ("adaad", {"alpha": 0.0}, 0, adaad(0.0)),
    "adaad alpha 0.25": ("adaad", {"alpha": 0.25}, 0, adaad(0.25)),
    "dgad smooth": (
        "dgad",
        {"label_mode": "smooth"},
        0,
        dgad(**FULL, mode="smooth", amount=0.1),
    ),
    "dgad hard label": ("dgad", {"label_mode": "smooth", "smoothing": 0.0}, 0, dgad(**FULL, mode="smooth", amount=0.0)),
    "dgad mix": ("dgad", {"label_mode": "mix"}, 0, dgad(**FULL, mode="mix", amount=0.5)),
    "dgad mix little": ("dgad", {"label_mode": "mix", "mixing": 0.25}, 0, dgad(**FULL, mode="mix", amount=0.25)),
    "dgad mix all": ("dgad", {"label_mode": "mix", "mixing": 1.0}, 0, dgad(**FULL, mode="mix", amount=1.0)),
    "adaad+igdm": ("adaad+igdm", {"alpha": 0.5}, 50, with_igdm(adaad(0.5), 1.0, 50 / EPOCHS)),
    "adaad+igdm first": ("adaad+igdm", {"alpha": 0.5, "igdm.weight": 9}, 0, with_igdm(adaad(0.5), 9.0, 0.0)),
    "dgad+igdm": ("dgad+igdm", {"igdm.weight": 10}, 199, with_igdm(dgad(**FULL), 10.0, 199 / EPOCHS)),
    "ard+igdm": ("ard+igdm", {"alpha": 0.7, "temperature": 5.0}, 150, with_igdm(ard(0.7, 5.0), 1.0, 150 / EPOCHS)),
}


def ours(method: Method, epoch: int) -> tuple[Step, nn.Sequential, list[tuple[Tensor, Tensor]]]:
    """The step on the golden x', the student with its gradients, and its statistics after each forward."""
    student = GOLDEN.network("student")
    batch = replace(GOLDEN.batch(epoch=epoch), x_adv=GOLDEN["x_adv"])
    with forward_trace(student) as trace:
        step = GOLDEN.run(method, student, batch=batch)
    return step, student, trace


def written_out(formula: Formula) -> tuple[Tensor, nn.Sequential, list[tuple[Tensor, Tensor]]]:
    student, teacher = GOLDEN.network("student").train(), GOLDEN.network("teacher").eval()
    with forward_trace(student) as trace:
        loss = formula(student, lambda x: silently(teacher, x), GOLDEN["x"], GOLDEN["x_adv"], GOLDEN["y"])
    loss.backward()
    return loss.detach(), student, trace


def same_gradients(student: nn.Module, reference: nn.Module) -> bool:
    pairs = zip(student.named_parameters(), reference.parameters(), strict=True)
    # The convolution's bias cancels in train-mode BatchNorm.
    return all(close(p.grad, q.grad) or (name == "0.bias" and p.grad.abs().max() < 1e-12) for (name, p), q in pairs)


@pytest.mark.parametrize("name", CASES)
def test_step_equals_the_formula(name: str) -> None:
    method, options, epoch, formula = CASES[name]
    step, student, trace = ours(build_method(method, options), epoch)
    loss, reference, expected = written_out(formula)
    assert close(step.loss.detach(), loss)
    assert same_gradients(student, reference)
    assert len(trace) == len(expected)
    assert all(close(a, b) for pair in zip(trace, expected, strict=True) for a, b in zip(*pair, strict=True))


@pytest.mark.parametrize("n", [3, 5, 7, 13])
def test_the_share_of_wrong_samples_is_as_exact_as_the_step(n: int) -> None:
    """A last batch of a size whose fractions no binary number holds, unlike the golden sixteen."""
    x, adv, y = GOLDEN["x"][:n], GOLDEN["x_adv"][:n], GOLDEN["y"][:n]
    teacher, method = GOLDEN.network("teacher").eval(), build_method("dgad", {})
    batch = replace(GOLDEN.batch(), x=x, y=y, x_adv=adv, n=n)
    loss = method.step(GOLDEN.network("student").train(), teacher, batch, GOLDEN.threat()).loss
    expected = dgad(**FULL)(GOLDEN.network("student").train(), lambda z: silently(teacher, z), x, adv, y)
    # Some tens of float64 operations on numbers around 1; a share in float32 is 1e-8 off.
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)


def test_these_comparisons_can_fail() -> None:
    """The sixteen rows of Table 2 are told apart, but for ELS(x) without MAP, where no clean target is used."""
    losses = {row: ours(build_method(*CASES[row][:2]), 0)[0].loss.item() for row in TABLE_2}
    assert len({round(loss, 9) for loss in losses.values()}) == 12
    loss, reference, _ = written_out(kd(0.9, 4.0))
    step, student, _ = ours(build_method("kd", {"temperature": 4.0001}), 0)
    assert not close(step.loss.detach(), loss)
    assert not same_gradients(student, reference)


def test_adaads_loss_is_linear_between_the_ends_of_its_sweep() -> None:
    """DGAD's Figure 2 sweeps alpha. Given x', loss and gradients lie on the line between alpha 0 and alpha 1."""

    def at(alpha: float) -> list[Tensor]:
        step, student, _ = ours(build_method("adaad", {"alpha": alpha}), 0)
        return [step.loss.detach(), *(parameter.grad for parameter in student[5].parameters())]

    clean, adversarial = at(0.0), at(1.0)
    assert not close(clean[0], adversarial[0])
    for alpha in (0.1, 0.5, 0.9):
        for between, low, high in zip(at(alpha), clean, adversarial, strict=True):
            assert close(between, (1 - alpha) * low + alpha * high)


def noise(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(len(kind))
    shape = GOLDEN["x"].shape
    if kind == "normal":
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1


Ascent = Callable[[Net, Net, Tensor, Tensor, Tensor], Tensor]
"""Student, teacher, x, x' and y to what x' makes large."""

MISTAKES: Ascent = lambda s, t, x, adv, y: ce(s(adv), onehot(y)).sum()  # noqa: E731
DISCREPANCY: Ascent = lambda s, t, x, adv, y: divergence(softmax(t(adv)), s(adv)).sum()  # noqa: E731
INCONSISTENCY: Ascent = lambda s, t, x, adv, y: ((softmax(s(adv)) - softmax(silently(s, x))) ** 2).sum()  # noqa: E731
ATTACKS: dict[str, tuple[dict[str, Any], Ascent]] = {
    "alp": ({}, MISTAKES),
    "score": ({}, INCONSISTENCY),
    "akd": ({}, MISTAKES),
    "adaiad": ({}, DISCREPANCY),
    "adaad+igdm": ({}, DISCREPANCY),
    "dgad": ({"label_mode": "smooth"}, DISCREPANCY),
    "dgad+igdm": ({"map": False, "els_adv": False}, DISCREPANCY),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("steps", [1, 2])
def test_the_attack_climbs_what_the_paper_says(name: str, steps: int) -> None:
    options, objective = ATTACKS[name]
    x, y, eps, size = GOLDEN["x"], GOLDEN["y"], 0.05, 0.03
    student, teacher = GOLDEN.network("student"), GOLDEN.network("teacher").eval().requires_grad_(False)
    threat = ThreatModel(eps=eps, step_size=size, steps=steps)
    before = student[1].running_mean.clone()
    step = build_method(name, options).step(student.train(), teacher, Batch(x, y, noise, len(x)), threat)

    evaluated = GOLDEN.network("student").eval()
    adv = x + 0.001 * noise("normal")
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(evaluated, teacher, x, adv, y), adv)
        moved = adv.detach() + size * gradient.sign()
        adv = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    assert step.x_adv is not None
    assert close(step.x_adv, adv)
    assert not torch.equal(student[1].running_mean, before)  # of the outer forwards alone: see the forward traces


def test_scores_attack_with_generated_data_uses_the_batch_and_leaves_the_statistics() -> None:
    """A clipped uniform start, BatchNorm on the batch's own statistics, and those that are kept do not move."""
    options = {"init": "uniform", "clip_start": True, "bn_in_attack": "batch"}
    x, y, threat = GOLDEN["x"], GOLDEN["y"], ThreatModel(eps=0.05, step_size=0.03, steps=2)
    student = GOLDEN.network("student").train()
    with forward_trace(student) as trace:
        step = build_method("score", options).step(student, None, Batch(x, y, noise, len(x)), threat)

    other = GOLDEN.network("student").train()
    adv = (x + 0.05 * noise("uniform")).clamp(0, 1)
    target = softmax(silently(other, x))
    for _ in range(2):
        adv = adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(((softmax(other(adv)) - target) ** 2).sum(), adv)
        adv = torch.minimum(torch.maximum(adv.detach() + 0.03 * gradient.sign(), x - 0.05), x + 0.05).clamp(0, 1)
    assert step.x_adv is not None
    assert close(step.x_adv, adv)
    fresh = GOLDEN.network("student").train()
    with forward_trace(fresh) as expected:
        silently(fresh, adv), silently(fresh, x)
    assert close(trace[-1][0], expected[-1][0])
    assert close(student[1].running_var, fresh[1].running_var)
