"""The first screen: the answer in a sentence that a reader can repeat, and whether it can be believed."""

from collections.abc import Iterator
from dataclasses import dataclass

from evaluators.report.evidence import Evidence, recorded
from evaluators.report.pages.words import allowance, count, interval, listed, percent
from evaluators.results import Attack, AttackedClass, Item, Results, WorstCase

WIDE = 0.05
"""Half the width of an interval above which the interval leads, since the share alone would say too much."""

QUESTIONS = {
    "clean": "Does it know these images at all?",
    "finite": "Are its answers numbers?",
    "constant": "Does it look at the image?",
    "one answer": "Is it better than one answer for everything?",
    "classes": "Do its classes fit those of the images?",
    "order of classes": "Are its classes in the order of the labels?",
    "channels": "Are the colour channels in the right order?",
    "random": "Does it answer the same image the same way twice?",
    "batch": "Is each image judged alone, whatever else is in the batch?",
    "rounding": "Can rounding hide what an attack gains?",
    "logits": "Do attacks see scores, and not squeezed probabilities?",
    "gradients": "Do gradients lead an attack anywhere?",
    "finite gradients": "Are all gradients numbers?",
    "saturated": "Are scores so large that simple attacks go blind?",
    "eps 1": "Does an attack that may do anything succeed?",
    "twin": "Do gradients come from the function that is deployed?",
    "loss": "Does more searching find more?",
    "single step": "Do many steps beat a single one?",
    "more steps": "Does PGD beat its own first step?",
    "white-box": "Do attacks that see inside beat attacks that do not?",
    "last stage": "Did the last attack, which needs no gradients, find little more?",
}
"""What each check asks, in plain words."""


@dataclass(frozen=True)
class Headline:
    """The first screen.

    Attributes:
        clean, robust: the two halves of the title; `robust` is empty where no attack with a limit saw all images.
        short: the title for a browser's tab.
        lead: sentences below it.
        doubted: the evaluation is not fully believed, so that the title must not boast.
        verdict: `high`, `warn` or `unreliable`.
        said: what the verdict means.
        reasons: what to doubt, each once.
        worst: the class with the smallest share of right images under attack; None if not known.
    """

    clean: str
    robust: str
    short: str
    lead: str
    doubted: bool
    verdict: str
    said: str
    reasons: list[str]
    worst: AttackedClass | None


def main_case(results: Results) -> WorstCase | None:
    """The worst case that leads: at the radius the model was trained for, else at the largest; None without any."""
    cases = results.worst_case
    trained = recorded(results, "threat").get("eps")
    own = [case for case in cases if isinstance(trained, int | float) and abs(case.eps - trained) < 1e-9]
    return own[0] if own else max(cases, key=lambda case: case.eps, default=None)


def strongest(results: Results) -> Attack | None:
    """The row of the main case's radius that left the fewest of all images right; None without any."""
    case = main_case(results)
    rows = [row for row in results.attacks if case and row.eps == case.eps and row.n == case.n]
    return min((row for row in rows if row.robust is not None), key=lambda row: row.robust or 0, default=None)


def weakest_class(case: WorstCase | None) -> AttackedClass | None:
    """The class with the smallest share of right images; the first of several."""
    return min(case.classes, key=lambda each: each.right / each.n, default=None) if case else None


def headline(evidence: Evidence) -> Headline:
    """The first screen of one evaluation."""
    results = evidence.results
    clean, case, checks = results.clean, main_case(results), results.checks
    doubted = checks.verdict != "high"
    title = f"{percent(clean.accuracy)} right."
    seen = f"Of {count(clean.n, f'{results.dataset.split} image')}, {clean.correct:,} were classified correctly"
    if case is None:
        robust, lead = "", f"{seen}. {_unlimited(results)}"
    else:
        share, ends = percent(case.robust_accuracy), interval(case.ci95)
        if (case.ci95[1] - case.ci95[0]) / 2 > WIDE:
            robust = f"{'At most ' if doubted else ''}{ends} % still right under attack."
        else:
            robust = f"{'At most ' if doubted else ''}{share} still right under attack."
        if doubted:
            robust = robust.replace("still right", "right")
        were = "was" if case.robust == 1 else "were"
        lead = (
            f"{seen}, and {case.robust:,} still {were} under the worst attack found, when "
            f"{allowance(case.norm, case.eps)}: {share} ({ends} with 95 % confidence, for images like these). "
            "Attacks find an upper bound: the true figure is at most this."
        )
    return Headline(
        clean=title,
        robust=robust,
        short=f"{title} {robust}".strip(),
        lead=lead,
        doubted=doubted,
        verdict=checks.verdict,
        said=_said(results),
        reasons=list(_reasons(results)),
        worst=weakest_class(case),
    )


def question(item: Item) -> str:
    """What a check asks; a row that raised a doubt asks for itself."""
    return QUESTIONS.get(item.name, f"Did {item.name} work?")


def _unlimited(results: Results) -> str:
    rows = [row for row in results.attacks if row.success is not None]
    if not rows:
        return "No attack has a result, so nothing is known about its robustness."
    found = listed([f"{row.id} broke {percent(row.success or 0.0)} of those it tried" for row in rows], most=3)
    return f"No attack with a limit on the change looked at all of them; {found}."


def _said(results: Results) -> str:
    n = len(results.checks.items)
    looked = f"{count(n, 'check')} looked for ways in which the figures could flatter the model"
    return {
        "high": f"{looked}, and found none.",
        "warn": f"{looked}. Read the figures with these in mind:",
        "unreliable": f"{looked}. Do not rely on the figures before these are settled:",
    }[results.checks.verdict]


def _reasons(results: Results) -> Iterator[str]:
    said: dict[str, list[str]] = {}
    for item in sorted(results.checks.items, key=lambda each: each.verdict != "unreliable"):
        if item.verdict != "high":
            names = said.setdefault(item.detail, [])
            if item.name not in names:
                names.append(item.name)
    for detail, names in said.items():
        yield f"{', '.join(names)}: {detail}"
