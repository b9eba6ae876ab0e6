"""Is this evaluation believable? Signs that a number is too good.

After Carlini et al., "On Evaluating Adversarial Robustness" (2019, https://arxiv.org/abs/1902.06705), section 4;
Athalye et al., "Obfuscated Gradients Give a False Sense of Security" (ICML 2018), section 3.1; and the flags that the
authors of AutoAttack raise. What is looked at is in `Evaluation.probes` (made by `evaluators.engine.probes`) and in the
rows.
"""

from collections.abc import Mapping

import numpy as np

from evaluators.engine.probes import Answers, Ascent, Probes
from evaluators.engine.record import IDLE, Evaluation, Outcome
from evaluators.results import Checks, Item, Verdict
from evaluators.verdict.clean_checks import of_clean
from evaluators.verdict.verdicts import at_most, by_gap, by_share, by_size, worst_of

FEW = 0.02
"""Share of the probed images that is nothing, and so is a single image."""
BATCH = 0.1
"""Of the rounding that runtime and twin may differ by: what an image's answer may move by in another batch. Kernels
that change with the batch's size stay below a hundredth, scales that dynamic quantisation takes from it do not."""
NOISE = (1e-5, 1e-2)
"""Two answers to one batch: a difference, relative to how far apart logits are, that is rounding; one that decides."""
GRAIN = (1e-3, 2e-2)
"""The step of float32 at the largest logit, relative to how far apart logits are: above the first, small gains of an
attack are rounded away; above the second, so is the way to them."""
_SCALE_FREE = ("apgd-dlr", "apgd-t", "autoattack", "fab", "square")
"""Beginnings of the names of budget attacks for which a cross-entropy that saturates is no obstacle."""


def check(evaluation: Evaluation) -> Checks:
    """Each check with its reason, and the worst verdict."""
    items = [*of_clean(evaluation), *_of_answers(evaluation), *_of_gradients(evaluation), *_of_rows(evaluation)]
    return Checks(verdict=worst_of(item.verdict for item in items), items=items)


def _of_answers(evaluation: Evaluation) -> list[Item]:
    """What predictions alone tell."""
    answers = evaluation.probes.answers
    if answers is None:  # no clean image was right
        return []
    random = _randomness(answers, any(_averages(outcome) for outcome in evaluation.outcomes))
    items = [random]
    if answers.batch_logits <= BATCH or random.verdict != "high":  # random answers differ anyway
        items.append(Item("batch", "high", "an image's answer does not depend on its batch"))
    else:
        detail = (
            f"an image's answer depends on its batch ({answers.batch_predictions:.1%} of predictions): "
            f"the verdicts hold for batches of {evaluation.batch_size} alone"
        )
        items.append(Item("batch", "warn", detail))
    detail = "float32 resolves the differences of logits"
    if answers.grain > GRAIN[0]:
        detail = (
            f"logits are so large that float32 knows their differences in steps of {answers.grain:.2g} of them only: "
            "attacks do not see what they gain"
        )
    items.append(Item("rounding", by_size(answers.grain, GRAIN), detail))
    if answers.probabilities:
        return [*items, Item("logits", "warn", "the outputs sum to 1: probabilities hide gradients")]
    return [*items, Item("logits", "high", "outputs are logits")]


def _randomness(answers: Answers, averaged: bool) -> Item:
    differ, flipped = answers.random_logits, answers.random_predictions
    if differ <= NOISE[0] and flipped == 0:
        return Item("random", "high", "the same images get the same answers")
    detail = (
        f"the same images get other answers (by {differ:.2g} of what logits are apart, {flipped:.1%} of predictions)"
    )
    if averaged or (flipped == 0 and differ <= NOISE[1]):
        return Item("random", "warn", f"{detail}: each verdict is one draw of many")
    return Item("random", "unreliable", f"{detail}: attack the average, with AutoAttack's version rand")


def _of_gradients(evaluation: Evaluation) -> list[Item]:
    """What gradients tell: whether there are any, of the function that is deployed, and whether they lead anywhere."""
    if evaluation.predictor.module is None:
        return [Item("gradients", "warn", "the model has no gradients: only black-box attacks ran")]
    found = evaluation.probes.gradients
    if found is None:  # no clean image was right
        return []
    detail = f"{found.zero_margin:.1%} of clean images have an input gradient that leads nowhere"
    items = [Item("gradients", by_share(found.zero_margin), detail)]
    if found.non_finite:
        detail = (
            f"{found.non_finite:.1%} of clean images have a gradient with entries that are not finite: "
            "searches go on without them"
        )
        items.append(Item("finite gradients", "warn", detail))
    saturated = max(0.0, found.zero - found.zero_margin)
    # Where it is the loss that saturates and not the model, an attack on another loss has not been fooled.
    blind = [_is_blind(each) for each in evaluation.outcomes if each.unit and each.row.eps and not each.row.surrogate]
    worst: Verdict = "warn" if saturated and not (blind and all(blind)) else "unreliable"
    if saturated:
        detail = (
            f"logits so large that the cross-entropy has no gradient on {saturated:.1%} of clean images: "
            "fgsm and pgd are blind there; believe attacks on differences of logits (autoattack)"
        )
        items.append(Item("saturated", at_most(worst, by_share(saturated)), detail))
    left, noise = found.left_at_eps_1, max(FEW, 1.5 / evaluation.probes.images)
    items.append(Item("eps 1", by_share(left, noise), f"PGD that may do anything to an image leaves {left:.1%} right"))
    return [*items, *_of_ascent(evaluation.probes, found.ascent, noise, worst)] if found.ascent else items


def _of_ascent(probes: Probes, ascent: Ascent, noise: float, worst: Verdict) -> list[Item]:
    """What PGD and FGSM at the radius that is evaluated tell."""
    items: list[Item] = []
    if probes.answers and probes.answers.random_logits <= NOISE[0]:  # random answers differ anyway
        detail = (
            f"of the images that break the module the gradients come from, {ascent.module_only:.1%} do not break the "
            "runtime"
        )
        items.append(Item("twin", by_share(ascent.module_only, noise), detail))
    if ascent.loss_fgsm is not None:
        items.append(_climb(ascent.losses, ascent.loss_fgsm, worst))
    one, many = ascent.left_fgsm, ascent.left_pgd
    detail = f"a single step leaves {one:.1%} of clean images right, 20 steps {many:.1%}"
    return [*items, Item("single step", by_gap(many - one, probes.images), detail)]


def _climb(losses: Mapping[int, float], fgsm: float, worst: Verdict) -> Item:
    """The loss has to rise along PGD, and not to fall back by more than a tenth of its rise; half of it is much."""
    start, end, highest = losses[0], losses[max(losses)], max(*losses.values(), fgsm)
    told = ", ".join(f"{loss:.3g} after {step}" for step, loss in losses.items())
    detail = f"mean loss along PGD: {told}; {fgsm:.3g} after a single step"
    if end <= start:
        return Item("loss", worst, f"PGD does not raise the loss: {detail}")
    if end < highest - 0.1 * (highest - start):
        much = end < highest - 0.5 * (highest - start)
        return Item("loss", worst if much else "warn", f"the loss falls back with more steps: {detail}")
    return Item("loss", "high", detail)


def _of_rows(evaluation: Evaluation) -> list[Item]:
    items: list[Item] = []
    for eps in evaluation.eps:
        rows = {outcome.row.id: outcome for outcome in evaluation.outcomes if outcome.unit and outcome.row.eps == eps}
        own = {outcome.row.attack: outcome for outcome in rows.values() if outcome.row.surrogate is None}
        one, many = own.get("fgsm"), own.get("pgd")
        if one and many:
            detail = f"PGD leaves {_robust(many):.1%}, its single step {_robust(one):.1%}"
            items.append(Item("more steps", by_gap(_robust(many) - _robust(one), _images(many)), detail))
        items += _with_and_without(evaluation, rows, own)
        items += [item for outcome in own.values() if (item := _last_stage(outcome)) is not None]
    for outcome in evaluation.outcomes:
        if outcome.failed:
            items.append(Item(outcome.row.id, "warn", f"{outcome.row.id} failed and says nothing: {outcome.reason}"))
        items += [Item(outcome.row.id, "warn", text) for text in (outcome.unit.warnings if outcome.unit else [])]
        if IDLE in outcome.flags:
            items.append(Item(outcome.row.id, "warn", IDLE))
    return items


def _with_and_without(evaluation: Evaluation, rows: dict[str, Outcome], own: dict[str, Outcome]) -> list[Item]:
    """What is found with gradients against what is found without: the former knows more, so it has to find more."""
    white = [outcome for outcome in rows.values() if outcome.row.source == "white-box"]
    black = [outcome for outcome in rows.values() if outcome.row.source != "white-box"]
    items: list[Item] = []
    if white and black:
        strongest = min(white, key=_robust)
        # A slow attack may have been given only the first images.
        gaps = [_robust(strongest, _images(each)) - _robust(each, _images(strongest)) for each in black]
        worst = int(np.argmax(gaps))
        shared = min(_images(strongest), _images(black[worst]))
        detail = (
            f"strongest without gradients {black[worst].row.id} {_robust(black[worst], shared):.1%}, "
            f"with gradients {strongest.row.id} {_robust(strongest, shared):.1%}"
        )
        # Losing to many queries says little about a single step.
        worst_of: Verdict = "warn" if all(outcome.row.attack == "fgsm" for outcome in white) else "unreliable"
        items.append(Item("white-box", at_most(worst_of, by_gap(gaps[worst], shared)), detail))
    elif black:
        names = ", ".join(outcome.row.id for outcome in black) if len(black) < 4 else "attacks without its gradients"
        items.append(Item("white-box", "warn", f"only {names} ran: its own gradients may find more"))
    searched = any(name.startswith(("autoattack", "square")) for name in own)  # AutoAttack ends with Square
    if white and evaluation.predictor.precision == "int8" and not searched:
        detail = "quantised layers only have estimated gradients, which can hide weakness; square did not run"
        items.append(Item("white-box", "warn", detail))
    return items


def _last_stage(outcome: Outcome) -> Item | None:
    """What an ensemble's random search broke after its gradients had given up; None of one that does not end so."""
    unit = outcome.unit
    assert unit is not None
    if unit.stages[-1:] != ["square"]:
        return None
    share = float(np.mean(unit.broken & (unit.broken_by == len(unit.stages) - 1)))
    detail = f"Square broke {share:.1%} of all images, which the gradients of {outcome.row.id} had left"
    return Item("last stage", by_gap(share, len(unit.broken)), detail)


def _is_blind(outcome: Outcome) -> bool:
    """It neither looks at differences of logits nor at answers alone, so a saturated cross-entropy stops it."""
    row = outcome.row
    return not row.attack.startswith(_SCALE_FREE) and row.params.get("loss") not in ("cw", "dlr")


def _averages(outcome: Outcome) -> bool:
    """It ran, and averages over a model's random answers (expectation over transformation)."""
    row = outcome.row
    averages = row.attack.endswith("-rand") or row.params.get("version") == "rand" or row.params.get("eot", 1) > 1
    return outcome.unit is not None and averages


def _images(outcome: Outcome) -> int:
    assert outcome.unit is not None
    return len(outcome.unit.broken)


def _robust(outcome: Outcome, first: int | None = None) -> float:
    """Share of the images, or of the first so many of them, that are right and stay so."""
    assert outcome.unit is not None
    return float(np.mean((outcome.unit.attacked & ~outcome.unit.broken)[:first]))
