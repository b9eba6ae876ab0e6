"""Add-ons against their formulas, image by image in float64, on each method that takes them; and how they combine."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import Golden, close
from torch import Tensor, nn

from dgad_tk.common import UserError
from dgad_tk.methods import ADDONS, METHODS, Batch, Step, build_method, split_name, typed_options
from dgad_tk.methods.base import AddOn, AdversarialMethod, Method

GOLDEN = Golden("dgad_resnet")
EPOCH, EPOCHS, K = 150, 200, 10
FITTING = [name for name, each in METHODS.items() if each.needs_teacher and issubclass(each, AdversarialMethod)]
OPTIONS: dict[str, dict[str, Any]] = {
    "ard": {"alpha": 0.7, "temperature": 5.0},
    "iad": {"alpha": 0.7, "temperature": 2.0},
    "rslad": {"scale": 2.0},
    "akd": {"lam": 0.3, "temperature": 5.0},
    "adaad": {"alpha": 0.6},
    "adaiad": {"alpha": 0.6, "temperature": 3.0},
    "dgad": {},
}
Answers = dict[str, Tensor]
"""Logits `(K,)` of one image: of the student s and of the teacher t, on x' (a) and x."""


def test_the_options_above_are_of_all_methods_that_take_addons() -> None:
    assert FITTING == list(OPTIONS) == ["ard", "iad", "rslad", "akd", "adaad", "adaiad", "dgad"]


# One image -----------------------------------------------------------------------------------------------------------


def softmax(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum()


def kl(p: Tensor, z: Tensor) -> Tensor:
    q = softmax(z)
    return torch.stack([p[k] * (p[k] / q[k]).log() for k in range(K)]).sum()


def swapped(z: Tensor, y: int) -> Tensor:
    """Logits with the label's in the place of the largest, where that is another one."""
    top, found = int(z.argmax()), z.clone()
    found[y], found[top] = z[top], z[y]
    return found


def trust(z: Tensor, y: int) -> Tensor:
    return softmax(z)[y] ** 0.1


def distilled(name: str, at: Answers, y: int, tau: float = 1.0) -> Tensor:
    """What an image adds to the loss by the teacher's answer that S(x') shall give; the teacher softened by tau."""
    of_adv, of_clean = at["ta"] / tau, at["t"] / tau
    match name:
        case "ard":
            return 0.7 * 25 * kl(softmax(of_clean / 5), at["sa"] / 5)
        case "iad":
            return 0.7 * 4 * kl(softmax(of_clean / 2), at["sa"] / 2)
        case "rslad":
            return 2 * 5 / 6 * kl(softmax(of_clean), at["sa"])
        case "akd":
            return -0.3 * (softmax(of_adv / 5) * softmax(at["sa"]).log()).sum()
        case "adaad":
            return 0.6 * kl(softmax(of_adv), at["sa"])
        case "adaiad":
            return 0.6 * 9 * kl(softmax(of_adv / 3), at["sa"] / 3)
        case "dgad":
            wrong = int(at["t"].argmax()) != y
            return 0 * at["sa"].sum() if wrong else kl(softmax(swapped(of_adv, y)), at["sa"])
    raise ValueError(name)


def rest(name: str, at: Answers, y: int, tau: float = 1.0) -> Tensor:
    """All else that an image adds to the loss of the base; tau is that of targets on clean images."""
    ce = -softmax(at["s"]).log()[y]
    match name:
        case "ard":
            return 0.3 * ce
        case "iad":
            return 0.7 * (1 - trust(at["ta"], y)) * kl(softmax(at["s"]), at["sa"]) + 0.3 * ce
        case "rslad":
            return 2 / 6 * kl(softmax(at["t"] / tau), at["s"])
        case "akd":
            return -0.7 * softmax(at["sa"]).log()[y]
        case "adaad":
            return 0.4 * kl(softmax(at["t"] / tau), at["s"])
        case "adaiad":
            return 0.6 * (1 - trust(at["ta"], y)) * kl(softmax(at["s"]), at["sa"]) + 0.4 * ce
        case "dgad":
            wrong = int(at["t"].argmax()) != y
            st = kl(softmax(swapped(at["t"] / tau, y)), at["s"]) if wrong else 0 * at["s"].sum()
            return st + 5 * (softmax(at["sa"]) - softmax(at["s"])).square().sum() / K
    raise ValueError(name)


def slope_gap(at: Answers) -> Tensor:
    """IGDM's divergence: of the differences along d, x' being x + d and m being x - d."""
    return kl(softmax(at["ta"] - at["tm"]), at["sa"] - at["sm"])


def entropy(z: Tensor) -> Tensor:
    p = softmax(z)
    return -torch.stack([p[k] * p[k].log() for k in range(K)]).sum()


# A batch -------------------------------------------------------------------------------------------------------------


def answers(student: nn.Module, teacher: nn.Module) -> list[Answers]:
    """Of all images of the golden batch; BatchNorm in train mode sees x, x' and x - d in turn, as in a step."""
    x, adv = GOLDEN["x"], GOLDEN["x_adv"]
    mirrored = x - (adv - x)
    with torch.no_grad():
        of_teacher = {"t": teacher(x), "ta": teacher(adv), "tm": teacher(mirrored)}
    found = {**of_teacher, "s": student(x), "sa": student(adv), "sm": student(mirrored)}
    return [{key: value[at] for key, value in found.items()} for at in range(len(x))]


def stepped(name: str, options: dict[str, Any], **more: Any) -> tuple[Step, nn.Sequential]:
    """Our step on the golden x', and the student with its gradients."""
    student = GOLDEN.network("student")
    batch = replace(GOLDEN.batch(epoch=EPOCH), x_adv=GOLDEN["x_adv"], **more)
    return GOLDEN.run(build_method(name, options), student, batch=batch), student


def check(step: Step, student: nn.Module, formula: Callable[[list[Answers], Sequence[int]], Tensor]) -> None:
    """Loss and gradients against the written-out ones; BatchNorm has no state that a loss depends on."""
    reference, teacher = GOLDEN.network("student").train(), GOLDEN.network("teacher").eval().requires_grad_(False)
    loss = formula(answers(reference, teacher), GOLDEN["y"].tolist())
    loss.backward()
    assert close(step.loss.detach(), loss.detach())
    for (name, ours), theirs in zip(student.named_parameters(), reference.parameters(), strict=True):
        assert name == "0.bias" or close(ours.grad, theirs.grad), name  # it cancels in train-mode BatchNorm


def weights(images: list[Answers], scale: float) -> tuple[list[Tensor], list[Tensor]]:
    """SAAD's w and v of every image."""
    unsure = [entropy(at["ta"]) for at in images]
    low, high = min(unsure), max(unsure)
    return [scale * (each - low) for each in unsure], [(each - low) / (high - low) for each in unsure]


@pytest.mark.parametrize("name", FITTING)
@pytest.mark.parametrize(("scale", "beta"), [(5.0, 0.0), (2.0, 0.3)])
def test_saad_weighs_what_each_method_distils_on_attacked_images(name: str, scale: float, beta: float) -> None:
    step, student = stepped(f"{name}+saad", OPTIONS[name] | {"saad.scale": scale, "saad.beta": beta})

    def formula(images: list[Answers], y: Sequence[int]) -> Tensor:
        w, v = weights(images, scale)
        each = []
        for i, at in enumerate(images):
            sure = beta * (1 - v[i]) * kl(softmax(at["t"]), at["s"])
            each.append(w[i] * distilled(name, at, y[i]) + rest(name, at, y[i]) + sure)
        return torch.stack(each).mean()

    check(step, student, formula)


@pytest.mark.parametrize("name", FITTING)
def test_no_answer_of_the_teacher_is_asked_for_twice(name: str) -> None:
    """T(x) and T(x'), each of which the base, the attack or the add-on needs: a large teacher is most of the cost."""
    teacher, seen = GOLDEN.network("teacher").eval().requires_grad_(False), []
    teacher.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    options = {"saad.beta": 0.2} | ({"teacher_in_attack": "linear"} if name in ("adaad", "adaiad", "dgad") else {})
    batch = replace(GOLDEN.batch(), noise=lambda kind: GOLDEN["noise_raw"])
    step = build_method(f"{name}+saad", options).step(
        GOLDEN.network("student").train(), teacher, batch, GOLDEN.threat()
    )
    assert step.x_adv is not None
    assert sorted(torch.equal(each, batch.x) for each in seen) == [False, True]
    assert sorted(torch.equal(each, step.x_adv) for each in seen) == [False, True]


@pytest.mark.parametrize("order", list(itertools.permutations(["igdm", "saad", "classwise"])))
def test_saad_c_as_its_authors_wrote_it(order: tuple[str, ...]) -> None:
    """Entropy weights on divergence and gradient matching, and clean distillation where the teacher is sure.

    In any order of the add-ons' names; the class-wise temperatures are 1 in the first step.
    """
    name = "+".join(("adaad", *order))
    step, student = stepped(name, {"igdm.weight": 3.0, "saad.beta": 0.2})

    def formula(images: list[Answers], y: Sequence[int]) -> Tensor:
        w, v = weights(images, 5.0)
        each = []
        for i, at in enumerate(images):
            robust = kl(softmax(at["ta"]), at["sa"]) + 3 * EPOCH / EPOCHS * slope_gap(at)
            each.append(w[i] * robust + 0.2 * (1 - v[i]) * kl(softmax(at["t"]), at["s"]))
        return torch.stack(each).mean()

    check(step, student, formula)


@pytest.mark.parametrize("name", FITTING)
def test_igdm_is_weighed_too(name: str) -> None:
    step, student = stepped(f"{name}+igdm+saad", OPTIONS[name])

    def formula(images: list[Answers], y: Sequence[int]) -> Tensor:
        w, _ = weights(images, 5.0)
        each = []
        for i, at in enumerate(images):
            robust = distilled(name, at, y[i]) + EPOCH / EPOCHS * slope_gap(at)
            each.append(w[i] * robust + rest(name, at, y[i]))
        return torch.stack(each).mean()

    check(step, student, formula)


VARIANTS: list[dict[str, Any]] = [
    {"subset_weights": "equal"},
    {"mobilenet_loss": "released"},
    {"mobilenet_loss": "intended"},
    {"divisor": "bs"},
    {"map": False},
    {"kl_reduction": "elementmean"},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_what_dgad_says_of_each_image_is_its_part_of_the_loss(options: dict[str, Any]) -> None:
    """Its mean is L_AT times the factor that L_AT has in the loss."""
    method = build_method("dgad", options)
    batch = replace(GOLDEN.batch(nominal_size=24, epoch=EPOCH), x_adv=GOLDEN["x_adv"])
    teacher = GOLDEN.network("teacher").eval().requires_grad_(False)

    step = method.step(GOLDEN.network("student").train(), teacher, batch, GOLDEN.threat())
    assert step.distilled is not None
    share = float(step.terms["teacher_wrong"]) * (16 / 24 if options.get("divisor") == "bs" else 1)
    factor = {
        "equal": 1.0,
        "released": 0.5 * (share * float(step.terms["l_st"]) + 1 - share),
        "intended": 0.5 * (1 - share),
    }.get(next(iter(options.values())), 1 - share)
    expected = factor * float(step.terms["l_at"])
    assert math.isclose(float(step.distilled.detach().mean()), expected, rel_tol=1e-12)


@pytest.mark.parametrize("saad", [False, True])
@pytest.mark.parametrize("name", FITTING)
def test_temperatures_soften_every_answer_that_the_student_shall_give(name: str, saad: bool) -> None:
    """Those of x' by one set of temperatures, those of x by the other; in a later epoch they have moved."""
    of_adv, of_clean = torch.linspace(0.5, 2.0, K).double(), torch.linspace(3.0, 0.6, K).double()
    memory = {
        "temperatures": torch.stack([of_adv, of_clean]),
        "losses": torch.zeros(2, K).double(),
        "images": torch.zeros(K).double(),
        "epoch": torch.tensor(EPOCH),
    }
    more, beta = ("+saad", {"saad.beta": 0.3}) if saad else ("", {})
    step, student = stepped(f"{name}+classwise{more}", OPTIONS[name] | beta, memory=memory)

    def formula(images: list[Answers], y: Sequence[int]) -> Tensor:
        each = []
        w, v = weights(images, 5.0)  # by the teacher's own answers
        for i, at in enumerate(images):
            adv, clean = float(of_adv[y[i]]), float(of_clean[y[i]])
            of_one = distilled(name, at, y[i], adv)
            if saad:
                of_one = w[i] * of_one + 0.3 * (1 - v[i]) * kl(softmax(at["t"] / clean), at["s"])
            each.append(of_one + rest(name, at, y[i], clean))
        return torch.stack(each).mean()

    check(step, student, formula)


@pytest.mark.parametrize("name", ["rslad", "dgad", "adaad", "adaiad"])
@pytest.mark.parametrize("kind", ["exact", "linear", "none"])
def test_the_attack_sees_the_softened_teacher(name: str, kind: str) -> None:
    """A teacher whose logits are divided beforehand makes the same x'."""
    options = {} if name == "rslad" else {"teacher_in_attack": kind}
    tau = torch.linspace(0.5, 2.0, K).double()
    on_adv = tau[GOLDEN["y"]]
    teacher = GOLDEN.network("teacher").eval().requires_grad_(False)

    class Softened(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return teacher(x) / on_adv[:, None]

    def attacked(guide: nn.Module, batch: Batch) -> Tensor:
        method = build_method(name, options)
        found = method.step(GOLDEN.network("student").train(), guide, batch, GOLDEN.threat()).x_adv
        assert found is not None
        return found

    batch = GOLDEN.batch()
    by_class = replace(batch, temperatures=(on_adv, torch.ones_like(on_adv)))
    tempered = attacked(teacher, by_class)
    assert close(tempered, attacked(Softened(), batch))
    assert not torch.equal(tempered, attacked(teacher, batch))
    assert close(attacked(teacher, replace(by_class, most=5)), tempered)  # each part by its own images' temperatures
    if name == "dgad":
        options |= {"attack_subset": "used", "pcr_weight": 0.0}
        used = ~GOLDEN["mask_teacher_wrong"]
        assert close(attacked(teacher, by_class)[used], tempered[used])


# Temperatures over the epochs ----------------------------------------------------------------------------------------


class Told(Method):
    """A base whose student answers what the test says."""

    def __init__(self, adv: Tensor, clean: Tensor | None) -> None:
        self.adv, self.clean, self.seen = adv, clean, []

    def step(self, student: Any, teacher: Any, batch: Batch, threat: Any) -> Step:
        self.seen.append(batch.temperatures)
        return Step(self.adv.sum(), {}, batch.x, self.adv, self.clean)


def told_steps(batches: list[tuple[int, list[int], Tensor, Tensor | None]], **options: Any) -> list[tuple[Any, Any]]:
    """Temperatures that each step saw, and the memory that it left."""
    memory: Any = {}
    found = []
    for epoch, labels, adv, clean in batches:
        base = Told(adv, clean)
        method = replace(build_method("rslad+classwise", options), base=base)
        x = torch.zeros(len(labels), 1, 1, 1)
        batch = Batch(x, torch.tensor(labels), lambda kind: torch.zeros(1), 8, epoch=epoch, epochs=10, memory=memory)
        memory = method.step(nn.Identity(), None, batch, None).memory  # type: ignore[arg-type]
        found.append((base.seen[0], memory))
    return found


def ce(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(each) for each in logits)) - logits[label]


def test_temperatures_move_by_the_gaps_of_the_last_epoch() -> None:
    """Three classes, of which the last has no image; two batches in the first epoch, one in the second."""
    easy, hard = [2.0, 0.0, 0.0], [0.0, 0.5, 0.0]
    steps = told_steps(
        [
            (0, [0, 1], torch.tensor([easy, hard]), torch.tensor([hard, easy])),
            (0, [1], torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([hard])),
            (1, [1, 0], torch.tensor([hard, easy]), torch.tensor([hard, easy])),
            (2, [0, 1], torch.tensor([easy, hard]), None),
        ],
        **{"classwise.rate": 0.3},
    )
    assert steps[0][0] is None
    assert torch.stack(steps[1][0]).eq(1).all()
    adv = [ce(easy, 0), (ce(hard, 1) + ce([1.0, 1.0, 0.0], 1)) / 2]
    nat = [ce(hard, 0), (ce(easy, 1) + ce(hard, 1)) / 2]
    assert adv[0] < adv[1]
    assert nat[0] < nat[1]
    # Two classes: their gaps are equal and opposite, so each temperature moves by the whole rate.
    expected = torch.tensor([[1.3, 0.7], [1.3, 0.7]])
    on_adv, on_clean = steps[2][0]
    torch.testing.assert_close(torch.stack([on_adv, on_clean]), expected[:, [1, 0]])
    assert steps[2][1]["temperatures"][:, 2].tolist() == [1.0, 1.0]
    sums = steps[1][1]["losses"]
    torch.testing.assert_close(sums[:, :2] / torch.tensor([1.0, 2.0]), torch.tensor([adv, nat]))
    torch.testing.assert_close(steps[3][1]["temperatures"][:, :2], torch.tensor([[1.6, 0.5], [1.6, 0.5]]))
    assert steps[3][1]["losses"][1].tolist() == [0.0, 0.0, 0.0]  # no clean answers in that step


def test_with_three_classes_the_gaps_tell() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.2]])
    steps = told_steps([(0, [0, 1, 2], logits, logits), (1, [0, 1, 2], logits, logits)])
    losses = [ce(row, label) for label, row in enumerate(logits.tolist())]
    gaps = [each - sum(losses) / 3 for each in losses]
    expected = [1 - 0.1 * gap / max(map(abs, gaps)) for gap in gaps]
    torch.testing.assert_close(steps[1][0][0], torch.tensor(expected))


def test_the_rate_falls_and_temperatures_stay_in_their_bounds() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    epochs = [(epoch, [0, 1], logits, logits) for epoch in range(10)]
    steps = told_steps(epochs, **{"classwise.rate": 0.2, "classwise.milestones": (0.5, 8), "classwise.least": 0.45})
    hot = [float(memory["temperatures"][0, 0]) for _, memory in steps]
    assert hot == pytest.approx([1, 1.2, 1.4, 1.6, 1.8, 1.82, 1.84, 1.86, 1.862, 1.864])
    assert float(steps[-1][1]["temperatures"][0, 1]) == pytest.approx(0.45)


def test_equal_losses_move_nothing() -> None:
    logits = torch.zeros(2, 2)
    steps = told_steps([(epoch, [0, 1], logits, logits) for epoch in range(3)])
    assert steps[2][1]["temperatures"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_losses_are_summed_in_float32_at_least() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.5]], dtype=torch.bfloat16)
    ((_, memory),) = told_steps([(0, [0, 1], logits, logits)])
    assert memory["losses"].dtype == memory["temperatures"].dtype == torch.float32


# Names ---------------------------------------------------------------------------------------------------------------


def parts(method: Method) -> list[str]:
    names = {each: name for name, each in (METHODS | ADDONS).items()}
    return [names[type(method)], *(parts(method.base) if isinstance(method, AddOn) else [])]


@pytest.mark.parametrize("base", FITTING)
@pytest.mark.parametrize("count", range(len(ADDONS) + 1))
def test_every_combination_can_be_built_in_any_order(base: str, count: int) -> None:
    for chosen in itertools.combinations(ADDONS, count):
        for order in itertools.permutations(chosen):
            name = "+".join((base, *order))
            assert split_name(name) == (base, list(chosen))
            assert parts(build_method(name, {})) == [*reversed(chosen), base]


def test_options_find_their_owner() -> None:
    options = {"alpha": "0.5", "saad.scale": "2", "igdm.weight": "3", "classwise.milestones": "0.5,0.9"}
    name = "adaad+saad+classwise+igdm"
    read = {"alpha": 0.5, "saad.scale": 2.0, "igdm.weight": 3.0, "classwise.milestones": (0.5, 0.9)}
    assert typed_options(name, options) == read
    with pytest.raises(UserError, match="no option 'weigth'.*did you mean 'weight'"):
        build_method(name, {"igdm.weigth": 1})
    with pytest.raises(UserError, match=r"option 'classwise.rate' needs --method adaad\+saad\+classwise"):
        build_method("adaad+saad", {"classwise.rate": 1})


def test_a_method_that_does_not_say_what_an_image_adds_is_a_bug() -> None:
    method = replace(build_method("rslad+saad", {}), base=Told(torch.zeros(1, 2), None))
    x = torch.zeros(1, 1, 1, 1)
    batch = Batch(x, torch.tensor([0]), lambda kind: x, 1)
    with pytest.raises(TypeError, match="Told does not say what each image adds"):
        method.step(nn.Identity(), nn.Identity(), batch, None)  # type: ignore[arg-type]
