"""What all forms say in the same words: the headline, the rows, the weakest class, the doubts, how it was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from dgad_tk.strangers.number_text import format_fraction
from evaluators.report.pages.words import count, interval, percent
from evaluators.results import Attack, ClassShare, Interval, Results, Verdict
from evaluators.verdict.advice import action

LIMITS = (
    "An attack gives an upper bound: what it left right may fall to another one, so the true share is at most that.",
    "An interval tells what the choice of images leaves open. It does not tell what stronger attacks would find.",
    "The figures hold for this file, these images, this norm and these radii, and for no other.",
)
"""What the figures do not promise."""
TERMS = (
    ("Believable", "whether checks of this evaluation found signs that its figures flatter the model"),
    ("Success", "the share of the images that an attack tried, those that were right, which it broke"),
)
"""Words of the forms, and what they mean."""
UNBOUNDED = "unbounded"
"""The eps of an attack that looks for the nearest adversarial image."""


@dataclass(frozen=True)
class Line:
    """A line of the table: clean accuracy, an attack, or the worst case. Shares are fractions of 1.

    Attributes:
        name: `clean`, the id of a row, or `worst case, Linf`.
        norm, eps: as people write them; empty for `clean`.
        share: right when clean, or robust; None where there is none.
        note: why there is no figure, or that not all images were looked at.
    """

    name: str
    norm: str
    eps: str
    share: float | None
    ci95: Interval | None = None
    success: float | None = None
    median_l2: float | None = None
    note: str = ""


_CAUTION: dict[Verdict, str] = {
    "high": "",
    "warn": "The evaluation has doubts about itself.",
    "unreliable": "The evaluation is unreliable: do not quote these figures before its doubts are settled.",
}


def ball(norm: str, eps: float) -> str:
    """`Linf 8/255`."""
    return f"{norm.capitalize()} {format_fraction(eps)}"


def headline(results: Results) -> str:
    """The answer in a few sentences, with the attacks that it rests on. It does not boast of figures in doubt."""
    most = "" if results.checks.verdict == "high" else "at most "
    clean = f"Of {count(results.clean.n, 'image')}, {percent(results.clean.accuracy)} were classified correctly"
    shares = [
        f"{most}{percent(each.robust_accuracy)} (95 % interval {interval(each.ci95)})" for each in results.worst_case
    ]
    radii = [ball(each.norm, each.eps) for each in results.worst_case]
    if not shares:
        sentence = f"{clean}. No attack inside an eps-ball was finished on all of them."
    else:
        more = [f"{share} at {radius}" for share, radius in zip(shares[1:], radii[1:], strict=True)]
        first = f"{clean}, and {shares[0]} still were under the worst attack found at {radii[0]}"
        sentence = "; ".join([first, *more]) + "."
    return " ".join(each for each in (sentence, attacks_run(results), _CAUTION[results.checks.verdict]) if each)


def attacks_run(results: Results) -> str:
    """The attacks inside an eps-ball that have a result, and whether the one that papers compare by is among them.

    Empty where there is none.
    """
    done = [row for row in results.attacks if row.status == "done" and row.eps is not None]
    if not done:
        return ""
    names = dict.fromkeys(row.name if row.surrogate is None else row.names[-1] for row in done)
    return " ".join([f"Attacks: {', '.join(names)}.", *without_autoattack(done)])


def without_autoattack(rows: Sequence[Attack], where: str = "") -> list[str]:
    """A sentence that AutoAttack is not among the rows, and what that means; none where it is.

    Args:
        where: such as ` on all images`.
    """
    if any(row.standing == "whole" for row in rows):
        return []
    missing = f"AutoAttack, which papers compare by, was not run{where}"
    if near := next((row.name for row in rows if row.standing == "near"), None):
        return [f"{missing}: {near} stands in for it, and may leave a little more right."]
    return [f"{missing}: expect a lower figure."]


def lines(results: Results) -> list[Line]:
    """Clean accuracy, every attack, and the worst case at every radius."""
    found = [Line("clean", "", "", results.clean.accuracy), *(_line(row, results.dataset.n) for row in results.attacks)]
    for each in results.worst_case:
        eps = format_fraction(each.eps)
        found.append(Line(f"worst case, {each.norm.capitalize()}", each.norm, eps, each.robust_accuracy, each.ci95))
    return found


def _line(row: Attack, n: int) -> Line:
    eps = UNBOUNDED if row.eps is None else format_fraction(row.eps)
    if row.status != "done":
        return Line(row.id, row.norm, eps, None, note=row.status)
    note = "" if row.n == n else f"first {row.n:,}"
    return Line(row.id, row.norm, eps, row.robust_accuracy, row.ci95, row.success, row.median_l2, note)


def distances(results: Results) -> list[tuple[str, str]]:
    """The median distances of searches for the nearest image in another norm than L2, which the tables have.

    Id of the row, and such as `4 in L0`.
    """
    return [
        (row.id, f"{row.median_distance:.3g} in {row.norm.capitalize()}")
        for row in results.attacks
        if row.status == "done" and row.eps is None and row.norm != "l2" and row.median_distance is not None
    ]


def side_by_side(results: Sequence[Results]) -> list[tuple[str, str, list[Line | None]]]:
    """Name, radius, and the line of each of several results; None where one has no such line.

    The same attack at the same radius is one line. The radius names its norm where there are several.
    """
    found = [{(line.name, line.norm, line.eps): line for line in lines(each)} for each in results]
    keys = dict.fromkeys(key for each in found for key in each)
    bounded = {line.norm for each in found for line in each.values() if line.eps not in ("", UNBOUNDED)}
    table = []
    for name, norm, eps in keys:
        radius = f"{norm.capitalize()} {eps}" if len(bounded) > 1 and eps not in ("", UNBOUNDED) else eps
        table.append((name, radius, [each.get((name, norm, eps)) for each in found]))
    return table


def same_images(results: Sequence[Results]) -> bool:
    """Whether all results are of the same images, so that their figures compare."""
    return len({each.dataset.sha256 for each in results}) == 1


def weakest(classes: Sequence[ClassShare]) -> list[ClassShare]:
    """The classes with the smallest share of right images: more than one where several have it."""
    shares = [Fraction(each.right, each.n) for each in classes]
    least = min(shares, default=Fraction(0))
    return [each for each, share in zip(classes, shares, strict=True) if share == least]


@dataclass(frozen=True)
class Weakest:
    """The weakest classes in one case.

    Attributes:
        case: such as `Weakest of 10 classes on clean images`.
        names: of the classes; empty where all share the lowest share, so that none is weaker than another.
        share: in words.
    """

    case: str
    names: list[str]
    share: str


def weakest_classes(results: Results) -> list[Weakest]:
    """Of clean images and at every radius."""
    cases: list[tuple[str, Sequence[ClassShare]]] = [("on clean images", results.clean.classes)]
    cases += [(f"under attack at {ball(each.norm, each.eps)}", each.classes) for each in results.worst_case]
    found = []
    for when, classes in cases:
        if not (worst := weakest(classes)):
            continue
        first, case = worst[0], f"Weakest of {count(len(classes), 'class')} {when}"
        share = percent(first.right / first.n)
        if len(worst) == 1:
            found.append(Weakest(case, [first.class_], f"{share} ({first.right:,} of {first.n:,})"))
        elif len(worst) < len(classes):
            found.append(Weakest(case, [each.class_ for each in worst], share))
        elif first.right == 0:
            found.append(Weakest(case, [], "no image of any class is right"))
        else:
            found.append(Weakest(case, [], f"all {len(classes):,} classes share the lowest share, {share}"))
    return found


@dataclass(frozen=True)
class Doubt:
    """What to doubt: a text once, with the names of the checks and rows that it is about, and what to do."""

    names: str
    text: str
    action: str


def advised(results: Results) -> list[Doubt]:
    """Each doubt, with what to do about it."""
    status = {row.id: row.status for row in results.attacks}
    found: dict[str, list[str]] = {}
    for item in results.checks.items:
        if item.verdict != "high" and item.name not in found.setdefault(item.detail, []):
            found[item.detail].append(item.name)
    said, named = set(found), {item.name for item in results.checks.items}
    for row in results.attacks:
        missing = row.status == "skipped" or (row.status == "failed" and row.id not in named)
        for note in [*row.flags, *([f"{row.status}: {row.reason}"] if missing else [])]:
            if note not in said:
                found.setdefault(note, []).append(row.id)
    return [
        Doubt(", ".join(names), text, " ".join(dict.fromkeys(action(each, status.get(each, "done")) for each in names)))
        for text, names in found.items()
    ]


def doubts(results: Results) -> list[tuple[str, str]]:
    """The same without what to do: names and text."""
    return [(each.names, each.text) for each in advised(results)]


def measured(results: Results) -> list[tuple[str, str]]:
    """What identifies the evaluation, and what it takes to repeat it."""
    model, dataset = results.model, results.dataset
    environment = ", ".join(f"{key} {value}" for key, value in results.environment.items())
    passes = [sum(row.forward_passes for row in results.attacks), sum(row.backward_passes for row in results.attacks)]
    found = {
        "Model": model.path,
        "Format": model.format,
        "SHA-256 of the model": model.sha256,
        "Images": f"{dataset.name} {dataset.split}, {count(dataset.n, 'image')}",
        "SHA-256 of the images": dataset.sha256,
        "Threat": ", ".join(ball(results.threat.norm, eps) for eps in results.threat.eps)
        or results.threat.norm.capitalize(),
        "Seed": str(results.seed),
        "Cost": f"{sum(row.seconds for row in results.attacks):.1f} s of attacks, {passes[0]:,} forward and "
        f"{passes[1]:,} backward passes",
        "Gradients against runtime": _twin(results.twin),
        "Environment": environment,
        "Date": results.created,
        "Command": results.command,
    }
    return [(key, value) for key, value in found.items() if value]


def _twin(found: Mapping[str, float]) -> str:
    """How near the differentiable twin is to the runtime: `logits differ by at most 1.9e-06, same answers on 100 %`."""
    gap, agree = found.get("max_abs_diff"), found.get("argmax_agreement")
    told = [] if gap is None else [f"logits differ by at most {gap:.2g}" if gap else "the same logits"]
    return ", ".join(told if agree is None else [*told, f"same answers on {percent(agree).replace('.0 %', ' %')}"])
