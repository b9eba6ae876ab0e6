"""Is this evaluation believable? Each check looks for a sign that a number is too good.

After Carlini et al., "On Evaluating Adversarial Robustness" (2019, https://arxiv.org/abs/1902.06705), section 4;
Athalye et al., "Obfuscated Gradients Give a False Sense of Security" (ICML 2018), section 3.1; and the flags that the
authors of AutoAttack raise. The checks read `Evaluation.probes` (see `evaluators.engine.probes`) and the rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluators.attacks.autoattack.stages import CLOSING
from evaluators.engine.probes import Answers, Ascent, Probes
from evaluators.engine.record import IDLE, Evaluation
from evaluators.engine.units import Unit
from evaluators.plan.rows import Row
from evaluators.results import Checks, Item, Verdict
from evaluators.verdict.clean_checks import of_clean
from evaluators.verdict.ensemble_checks import of_quantised, of_stages
from evaluators.verdict.verdicts import at_most, by_gap, by_share, by_size, worst_of

FEW = 0.02
"""Up to this share of the probed images, or a single image, is noise."""
REGROUPED = 0.1
"""How far an image's answer may move in another batch, as a share of the rounding that is allowed between runtime and
twin. Kernels that depend on the batch size stay below a hundredth; dynamic quantisation, whose scales depend on the
batch, does not."""
NOISE = (1e-5, 1e-2)
"""Differences of two answers to one batch, relative to how far apart logits are: up to the first it is rounding, above
the second it decides predictions."""
GRAIN = (1e-3, 2e-2)
"""The step of float32 at the largest logit, relative to how far apart logits are. Above the first, rounding hides small
gains from an attack; above the second, it hides large ones too."""


def check(evaluation: Evaluation) -> Checks:
    """Each check with its reason, and the worst verdict."""
    items = [*of_clean(evaluation), *_of_answers(evaluation), *_of_gradients(evaluation), *_of_rows(evaluation)]
    return Checks(verdict=worst_of(item.verdict for item in items), items=items)


def _of_answers(evaluation: Evaluation) -> list[Item]:
    """What predictions alone tell."""
    answers = evaluation.probes.answers
    if answers is None:  # no clean image was right
        return []
    random = _randomness(answers, any(_averages(row) for row, _ in evaluation.done))
    items = [random]
    if answers.batch_logits <= REGROUPED or random.verdict != "high":  # random answers differ anyway
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
    """Whether there are gradients, whether they are those of the deployed function, and whether they lead anywhere."""
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
    blind = [_is_blind(row) for row, _ in evaluation.done if row.eps and not row.surrogate]
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
    """What PGD and FGSM at the evaluated radius tell."""
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
    """The loss has to rise along PGD; then it may fall by a tenth of that rise. A fall by half is grave."""
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
    """What rows tell by themselves, and compared with each other."""
    items: list[Item] = []
    if evaluation.outcomes and not evaluation.done:
        items.append(Item("white-box", "warn", "no attack ran: nothing is known about robustness"))
    for eps in evaluation.eps:
        rows = [(row, unit) for row, unit in evaluation.done if row.eps == eps]
        own = {row.attack: unit for row, unit in rows if row.surrogate is None}
        for row, one in rows:
            if row.surrogate is None and (many := own.get(row.spec.single_step)):
                detail = f"{row.spec.single_step} leaves {_robust(many):.1%}, its single step {_robust(one):.1%}"
                items.append(Item("more steps", by_gap(_robust(many) - _robust(one), len(many.broken)), detail))
        items += _with_and_without(evaluation, rows)
        items += [_alarm(row, unit) for row, unit in rows if row.surrogate is None and _alarms(row, unit)]
        for row, unit in rows:
            if CLOSING in unit.stages:
                share = float(np.mean(unit.broken & (unit.broken_by == unit.stages.index(CLOSING))))
                detail = f"a last ascent in float32 broke {share:.1%} of all images, which {row.id} in bf16 had left"
                items.append(Item("search precision", by_gap(share, len(unit.broken)), detail))
        items += of_quantised(evaluation, rows)
        items += [item for row, unit in rows if row.surrogate is None for item in of_stages(row, unit)]
    for outcome in evaluation.outcomes:
        name = outcome.row.id
        if outcome.failed:
            items.append(Item(name, "warn", f"{name} failed and says nothing: {outcome.reason}"))
        items += [Item(name, "warn", text) for text in (outcome.unit.warnings if outcome.unit else [])]
        if IDLE in outcome.flags:
            items.append(Item(name, "warn", IDLE))
    return items


def _with_and_without(evaluation: Evaluation, rows: Sequence[tuple[Row, Unit]]) -> list[Item]:
    """Attacks with gradients know more than attacks without, so they have to find more."""
    white = [(row, unit) for row, unit in rows if row.source == "white-box"]
    black = [(row, unit) for row, unit in rows if row.source != "white-box"]
    items: list[Item] = []
    if white and black:
        best, found = min(white, key=lambda each: _robust(each[1]))
        # A slow attack may have seen only the first images.
        gaps = [_robust(found, len(unit.broken)) - _robust(unit, len(found.broken)) for _, unit in black]
        gap, (rival, by_rival) = max(gaps), black[int(np.argmax(gaps))]
        shared = min(len(found.broken), len(by_rival.broken))
        detail = (
            f"strongest without gradients {rival.id} {_robust(by_rival, shared):.1%}, "
            f"with gradients {best.id} {_robust(found, shared):.1%}"
        )
        # Losing to many queries says little about a single step.
        worst: Verdict = "unreliable" if any(row.spec.searches for row, _ in white) else "warn"
        items.append(Item("white-box", at_most(worst, by_gap(gap, shared)), detail))
    elif black:
        names = ", ".join(row.id for row, _ in black) if len(black) < 4 else "attacks without its gradients"
        items.append(Item("white-box", "warn", f"only {names} ran: its own gradients may find more"))
    searched = any(row.spec.asks for row, _ in rows if row.surrogate is None)
    if white and evaluation.predictor.precision == "int8" and not searched:
        detail = "quantised layers only have estimated gradients, which can hide weakness; square did not run"
        items.append(Item("white-box", "warn", detail))
    return items


def _alarms(row: Row, unit: Unit) -> list[int]:
    """Numbers of the stages that search by answers alone, where others came before them."""
    return [number for number, stage in enumerate(unit.stages) if number and stage in row.spec.alarms]


def _alarm(row: Row, unit: Unit) -> Item:
    """How much the stages found that search by answers alone, which the gradients before them had left."""
    share = float(np.mean(unit.broken & np.isin(unit.broken_by, _alarms(row, unit))))
    some = "; it tried a tenth of these, and all if that found something" if row.spec.autoattack == "near" else ""
    detail = f"Square broke {share:.1%} of all images, which the gradients of {row.id} had left{some}"
    return Item("last stage", by_gap(share, len(unit.broken)), detail)


def _is_blind(row: Row) -> bool:
    """A saturated cross-entropy stops the attack: it uses neither differences of logits nor answers alone."""
    return not row.spec.scale_free and row.params.get("loss") not in ("cw", "dlr")


def _averages(row: Row) -> bool:
    """The attack averages over a model's random answers (expectation over transformation)."""
    return row.spec.averages or row.params.get("eot", 1) > 1


def _robust(unit: Unit, first: int | None = None) -> float:
    """Share of the images, or of the first so many, that are right and stay so."""
    return float(np.mean((unit.attacked & ~unit.broken)[:first]))
