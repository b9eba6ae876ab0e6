"""How it was measured, how to repeat it, and what it does not say."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dgad_tk.data.images.resize import RESIZES
from evaluators.report.evaluation.attacks import MOST_ROWS
from evaluators.report.evaluation.headline import main_case
from evaluators.report.pages.words import count, eps_text, percent, size
from evaluators.results import Dataset, Results

Facts = list[tuple[str, str]]

_MACHINE = {"processor": "processor", "cores": "cores", "threads": "threads", "system": "system", "gpu": "GPU"}
_NOT_VERSIONS = {*_MACHINE, "runtime", "batch_size", "code"}


def identity(results: Results) -> Facts:
    """Six facts or so that say what was attacked, with what, on what."""
    model, dataset, case = results.model, results.dataset, main_case(results)
    record = model.metadata or {}
    facts = [("File", model.path), ("SHA-256", model.sha256[:16]), ("Format", _format(results))]
    facts.append(("Judged by", str(results.environment.get("runtime", "not known"))))
    if trained := _trained(record):
        facts.append(("Trained", trained))
    if case:
        facts.append(("Threat", f"{case.norm.capitalize()} up to {eps_text(case.eps)}"))
    facts.append(("Images", f"{count(dataset.n, f'{dataset.split} image')} of {dataset.name}"))
    return [*facts, ("Date", results.created[:10])]


def _format(results: Results) -> str:
    precision = results.model.computes_in
    found = results.model.format if not precision else f"{results.model.format}, {precision}"
    return found if results.model.size is None else f"{found}, {size(results.model.size)}"


def _trained(record: dict[str, Any]) -> str:
    network, method, dataset = (str(record.get(key) or "") for key in ("model", "method", "dataset"))
    text = f"{network} by {method}" if method else network
    return f"{text} on {dataset}" if text and dataset else text


def measured(results: Results) -> Facts:
    """Versions, hardware, seeds and hashes."""
    environment, dataset = results.environment, results.dataset
    seconds = sum(row.seconds for row in results.attacks)
    passes = sum(row.forward_passes + row.backward_passes for row in results.attacks)
    facts = [
        ("model SHA-256", results.model.sha256),
        *_shape(dataset),
        ("images and labels SHA-256", dataset.sha256),
        ("dgad-tk's code SHA-256", str(environment.get("code", "not recorded"))),
        ("seed", str(results.seed)),
        ("batch size", str(environment.get("batch_size", "not recorded"))),
        ("judged by", str(environment.get("runtime", "not recorded"))),
    ]
    facts += [(label, str(environment[key])) for key, label in _MACHINE.items() if key in environment]
    versions = ", ".join(f"{key} {value}" for key, value in environment.items() if key not in _NOT_VERSIONS)
    facts += [
        ("versions", versions),
        ("time of the attacks", f"{seconds:,.0f} s, {passes:,} forward and backward passes"),
    ]
    if results.twin:
        agree = results.twin.get("argmax_agreement", 0.0)
        gap = results.twin.get("max_abs_diff", 0.0)
        told = (
            f"from a copy of the file that has gradients: equal answers on {percent(agree)} of the clean images that "
        )
        facts.append(("gradients", f"{told}were compared, logits differ by at most {gap:.2g}"))
    if known := _preprocessing(results.model.preprocessing):
        facts.append(("how the file is fed", known))
    facts += [("note", note) for note in results.model.notes]
    return facts


def _shape(dataset: Dataset) -> Facts:
    """What the pictures became, and how."""
    if dataset.shape is None:
        return []
    channels, height, width = dataset.shape
    kind = {1: "grey, ", 3: "RGB, "}.get(channels, f"{channels} channels, ") if dataset.resize else ""
    how = f", {RESIZES[dataset.resize].says}" if dataset.resize in RESIZES else ""
    return [("images", f"{kind}{height} x {width} pixels (height x width){how}")]


@dataclass(frozen=True)
class Explained:
    """What an attack is, what it sees, and how it was set."""

    name: str
    what: str
    sees: str
    settings: str


_SEES = {
    "white-box": "gradients of the file, and its answers",
    "black-box": "answers of the file",
    "transfer": "another model, then answers of the file",
}


def explained(results: Results) -> list[Explained]:
    """The attacks that ran, each once; none in results of older versions, which do not say what an attack is."""
    found: dict[tuple[str, str], Explained] = {}
    for row in results.attacks:
        if row.description and len(found) < MOST_ROWS:
            settings = ", ".join(f"{key} {value}" for key, value in row.params.items())
            sees = _SEES.get(row.source, row.source)
            found.setdefault((row.name, row.source), Explained(row.name, row.description, sees, settings))
    return list(found.values())


def _preprocessing(preprocessing: dict[str, Any]) -> str:
    told = {key: value for key, value in preprocessing.items() if value not in (None, "", [], {}, ())}
    return ", ".join(f"{key} {value}" for key, value in told.items())


def limits(results: Results) -> Iterator[str]:
    """What the figures do not promise."""
    case, n = main_case(results), results.dataset.n
    if case:
        yield (
            f"Nothing about other changes than {case.norm.capitalize()} up to {eps_text(case.eps)}: not about larger "
            "ones, other norms, rotations, patches, blur or weather."
        )
    yield (
        f"Nothing about images unlike these {n:,}. The interval covers the chance of their choice, not another camera, "
        "country or year."
    )
    yield "It is no certificate. An attack that was not tried may find more."
    if any(row.n < n for row in results.attacks if row.status == "done"):
        yield "Some attacks saw only the first images; they are marked, and no part of the worst case."
    if results.clean.non_finite:
        yield f"{count(results.clean.non_finite, 'image')} got answers that are no numbers; they count as wrong."
    if "int8" in f"{results.model.format} {results.model.computes_in}":
        yield "Rounding hides gradients: INT8 files look a little more robust than they are."
