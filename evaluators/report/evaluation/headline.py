"""The first screen: the answer in a sentence that a reader can repeat, and whether it can be believed."""

from collections.abc import Iterator
from dataclasses import dataclass

from evaluators.report.evidence import Evidence, number, recorded
from evaluators.report.forms.facts import weakest, without_autoattack
from evaluators.report.pages.words import allowance, count, interval, listed, name, percent
from evaluators.results import Attack, ClassShare, Item, Results, WorstCase
from evaluators.verdict.advice import ADVICE, action

WIDE = 0.05
"""Half the width of an interval above which the interval leads, since the share alone would say too much."""


@dataclass(frozen=True)
class Headline:
    """The first screen.

    Attributes:
        clean, robust: the two halves of the title; `robust` is empty where no attack with a limit saw all images.
        short: the title for a browser's tab.
        lead: the answer in sentences.
        ran: which attacks ran, and whether the usual strong one is missing.
        weakest: which class has the smallest share of right images; empty if not known.
        doubted: the evaluation is not fully believed, so that the title must not boast.
        verdict: `high`, `warn` or `unreliable`.
        said: what the verdict means.
        reasons: what to doubt, each once.
    """

    clean: str
    robust: str
    short: str
    lead: str
    ran: str
    weakest: str
    doubted: bool
    verdict: str
    said: str
    reasons: list[str]


def main_case(results: Results) -> WorstCase | None:
    """The worst case that leads: at the radius the model was trained for, else at the largest; None without any."""
    cases = results.worst_case
    trained = number(recorded(results, "threat").get("eps"))
    own = [case for case in cases if trained is not None and abs(case.eps - trained) < 1e-9]
    return own[0] if own else max(cases, key=lambda case: case.eps, default=None)


def strongest(results: Results) -> Attack | None:
    """The row of the main case's radius that left the fewest of all images right; None without any."""
    case = main_case(results)
    rows = [row for row in results.attacks if case and row.eps == case.eps and row.n == case.n]
    return min((row for row in rows if row.robust is not None), key=lambda row: row.robust or 0, default=None)


def weakest_class(case: WorstCase | None) -> ClassShare | None:
    """The one class with the smallest share of right images; None where several share it."""
    lowest = weakest(case.classes if case else [])
    return lowest[0] if len(lowest) == 1 else None


def headline(evidence: Evidence) -> Headline:
    """The first screen of one evaluation."""
    results = evidence.results
    clean, case, doubted = results.clean, main_case(results), results.checks.verdict != "high"
    title = f"{percent(clean.accuracy)} right."
    seen = f"Of {count(clean.n, f'{results.dataset.split} image')}, {clean.correct:,} were classified correctly"
    if case is None:
        robust, lead = "", f"{seen}. {_unlimited(results)}"
    else:
        ends, were = interval(case.ci95), "was" if case.robust == 1 else "were"
        robust = robust_title(case, doubted)
        lead = (
            f"{seen}, and {case.robust:,} still {were} under the worst attack found, when "
            f"{allowance(case.norm, case.eps)}: {percent(case.robust_accuracy)} ({ends} with 95 % confidence). "
            "For these images the true figure is at most this, since an attack that was not tried may find more. "
            "For other images of the kind, the interval says how far chance may have moved it."
        )
    return Headline(
        clean=title,
        robust=robust,
        short=f"{title} {robust}".strip(),
        lead=lead,
        ran=_ran(results),
        weakest=_weakest(case),
        doubted=doubted,
        verdict=results.checks.verdict,
        said=_said(results),
        reasons=list(_reasons(results)),
    )


def robust_title(case: WorstCase, doubted: bool) -> str:
    """The second half of the title. Where the interval is wide, it leads; where there is doubt, it does not boast."""
    if case.robust == 0:
        return "None still right under attack."
    if (case.ci95[1] - case.ci95[0]) / 2 > WIDE:
        share = f"{interval(case.ci95)} %"
    else:
        share = f"{100 * case.robust_accuracy:.1f} %" if doubted else percent(case.robust_accuracy)
    return f"At most {share} right under attack." if doubted else f"{share} still right under attack."


def _ran(results: Results) -> str:
    """Which attacks ran at the main radius, and that the one which papers compare by did not."""
    case = main_case(results)
    rows = [row for row in results.attacks if case and row.eps == case.eps and row.robust is not None]
    own = [row for row in rows if row.surrogate is None]
    names = listed(list(dict.fromkeys(row.name for row in own)), most=6) or "made on other models only"
    missing = without_autoattack([row for row in own if row.n == results.dataset.n], " on all images")
    return " ".join([f"The attacks were {names}.", *missing]) if rows else ""


def _weakest(case: WorstCase | None) -> str:
    lowest = weakest(case.classes if case else [])
    if case is None or not lowest:
        return ""
    first, share = lowest[0], percent(lowest[0].right / lowest[0].n)
    if len(lowest) == len(case.classes) > 1:
        return f"All {len(lowest):,} classes are at {share}."
    if len(lowest) > 1:
        return f"The weakest are {len(lowest):,} of {len(case.classes):,} classes, at {share}."
    return f"The weakest class is {name(first.class_)}: {first.right:,} of its {count(first.n, 'image')}, {share}."


@dataclass(frozen=True)
class Checked:
    """A check, or one that looked at several rows.

    Attributes:
        said: what holds, or what is wrong, in plain words.
        details: what it saw.
    """

    verdict: str
    said: str
    details: list[str]


def checked(results: Results) -> list[Checked]:
    """Every check once, with the worst of its verdicts."""
    found: dict[str, list[Item]] = {}
    for item in results.checks.items:
        found.setdefault(item.name, []).append(item)
    checks = []
    for name_, items in found.items():
        verdict = max((item.verdict for item in items), key=["high", "warn", "unreliable"].index)
        advice = ADVICE.get(name_)
        said = name_ if advice is None else advice.holds if verdict == "high" else advice.fault
        checks.append(Checked(verdict, said[:1].upper() + said[1:].rstrip("."), [item.detail for item in items]))
    return checks


def _unlimited(results: Results) -> str:
    rows = [row for row in results.attacks if row.success is not None]
    if not rows:
        return "No attack has a result, so nothing is known about its robustness."
    found = listed([f"{row.id} broke {percent(row.success or 0.0)} of those it tried" for row in rows], most=3)
    return f"No attack with a limit on the change looked at all of them; {found}."


def _said(results: Results) -> str:
    items = results.checks.items
    n, found = len(items), sum(item.verdict != "high" for item in items)
    if not n:
        return "No check looked at these figures."
    checks = f"{found:,} of {count(n, 'check')} found something to doubt"
    return {
        "high": f"{count(n, 'check')} looked for ways in which the figures could flatter the model, and found none.",
        "warn": f"{checks}. Read the figures with this in mind:",
        "unreliable": f"{checks}. Do not rely on the figures before this is settled:",
    }[results.checks.verdict]


def _reasons(results: Results) -> Iterator[str]:
    said: dict[str, list[str]] = {}
    for item in sorted(results.checks.items, key=lambda each: each.verdict != "unreliable"):
        if item.verdict != "high":
            names = said.setdefault(item.detail, [])
            if item.name not in names:
                names.append(item.name)
    for detail, names in said.items():
        yield f"{', '.join(names)}: {detail}. {action(names[0])}"
