"""Results of one model as a Hugging Face model card: README.md with a `model-index` in its front matter.

The keys are those of https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import yaml
from pydantic import ValidationError

from dgad_tk.artifacts.record import Artifact
from dgad_tk.common import UserError
from dgad_tk.strangers.number_text import format_fraction
from evaluators.report.forms.facts import LIMITS, ball, headline
from evaluators.report.forms.markdown import distance_lines, how, rows, verdict, weakest_lines
from evaluators.report.forms.markup import code, prose
from evaluators.report.pages.words import count, plain
from evaluators.results import Interval, Results

MARK = "# dgad report"
MOST_CLASSES = 20
DIGITS = 4
"""Decimals of a share."""
_LIBRARIES = {"safetensors": "dgad-tk", "torch-export": "pytorch", "torchscript": "pytorch"}
"""What opens a file, by its format; else the format's own name, such as `onnx`."""


def model_card(results: Sequence[Results]) -> str:
    """The card of the model that all results are of, for example at several norms.

    Raises:
        UserError: the results are of several files.
    """
    first, record = _only(results), _record(results[0])
    library = _LIBRARIES.get(first.model.format, first.model.format)
    quotable = [each for each in results if each.checks.verdict != "unreliable"]
    index = [{"name": _name(first), "results": [_index(each) for each in quotable]}] if quotable else []
    front = {
        "library_name": library,
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", "robust-accuracy", *([record.method] if record and record.method else [])],
        "metrics": ["accuracy"],
        **({"model-index": index} if index else {}),
    }
    text = yaml.safe_dump(_plain(front), sort_keys=False, allow_unicode=True, width=float("inf"))
    body = [f"# {code(_name(first))}", ""]
    for each in results:
        body += [f"**{prose(headline(each))}**", "", *verdict(each), ""]
    body += ["## Intended use", "", *_use(first, record), "", "## How it was trained", "", *_training(record), ""]
    body += ["## How it was evaluated", ""]
    for each in results:
        body += [*rows(each), "", *distance_lines(each), *weakest_lines(each), *how(each), ""]
    body += ["## Limits", "", *(f"- {limit}" for limit in LIMITS), ""]
    return "\n".join(["---", MARK, text + "---", "", *body])


def card_notes(results: Sequence[Results]) -> list[str]:
    """What an evaluation does not know and a card should have."""
    notes = ["the card needs from you: `license`, `datasets` (names on the Hub), and what the model is intended for"]
    if any(each.checks.verdict == "unreliable" for each in results):
        notes.append(
            "figures of an unreliable evaluation are not in the card's model-index, since the Hub would show them "
            "without the doubt"
        )
    return notes


def _only(results: Sequence[Results]) -> Results:
    first = results[0]
    if other := next((each for each in results if each.model.sha256 != first.model.sha256), None):
        raise UserError(
            f"a model card is of one model, got '{first.model.path}' and '{other.model.path}'",
            hint="several results may be given if they are of the same file",
        )
    return first


def _record(results: Results) -> Artifact | None:
    """The record that the file carried.

    Raises:
        UserError: results.json was changed by hand, so that it holds none.
    """
    if results.model.metadata is None:
        return None
    try:
        return Artifact.model_validate(results.model.metadata)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"model.metadata in results.json is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            hint="attack the model again",
        ) from None


def _name(results: Results) -> str:
    return PurePath(results.model.path).stem or results.model.path


def _index(results: Results) -> dict[str, Any]:
    """The figures of one evaluation as `model-index` has them: clean, each attack in a ball, the worst case."""
    verdict = results.checks.verdict
    doubt = {} if verdict == "high" else {"verdict": verdict}
    metrics = [_metric("Clean accuracy", results.clean.accuracy, images=results.clean.n, **doubt)]
    for row in results.attacks:
        if row.robust_accuracy is not None and row.ci95 is not None and row.eps is not None:
            name = f"Robust accuracy, {row.id} at {ball(row.norm, row.eps)}"
            about = {"attack": row.id, **_about(row.norm, row.eps, row.n, row.ci95), **doubt}
            metrics.append(_metric(name, row.robust_accuracy, **about))
    for worst in results.worst_case:
        name = f"Robust accuracy, worst case at {ball(worst.norm, worst.eps)}"
        about = {**_about(worst.norm, worst.eps, worst.n, worst.ci95), **doubt}
        metrics.append(_metric(name, worst.robust_accuracy, **about))
    dataset = results.dataset
    return {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {
            "type": dataset.name,
            "name": dataset.name,
            "split": dataset.split,
            "args": {"images": dataset.n, "sha256": dataset.sha256},
        },
        "metrics": metrics,
    }


def _metric(name: str, value: float, **about: object) -> dict[str, Any]:
    return {"type": "accuracy", "name": name, "value": round(value, DIGITS), "args": about}


def _about(norm: str, eps: float, n: int, ends: Interval) -> dict[str, Any]:
    return {"norm": norm, "eps": eps, "images": n, "interval": [round(end, DIGITS) for end in ends]}


def _plain(value: Any) -> Any:
    """The same document with all text on one line, so that none of it can end the front matter."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return plain(value) if isinstance(value, str) else value


def _pixels(shape: tuple[int, int, int]) -> str:
    return f"{shape[1]} by {shape[2]} pixels" + ("" if shape[1] == shape[2] else " (height by width)")


def _use(results: Results, record: Artifact | None) -> list[str]:
    classes = record.classes if record else results.dataset.classes
    shape = record.input_shape if record else results.dataset.shape
    named = ", ".join(map(code, classes[:MOST_CLASSES]))
    more = f" and {len(classes) - MOST_CLASSES:,} more" if len(classes) > MOST_CLASSES else ""
    size = f"images of {_pixels(shape)} with {count(shape[0], 'channel')}" if shape else "images"
    told = f"{len(classes):,} classes: {named}{more}" if classes else f"the classes of {code(results.dataset.name)}"
    lines = [f"Classifies {size} into {told}."]
    if record:
        lines.append("Input is float32 of shape (N, C, H, W) in [0, 1], output are logits; normalisation is inside it.")
    else:
        lines.append("The file carries no record of its own: these are the classes and images of its evaluation.")
    usual: tuple[Any, ...] = (None, [], [0.0, 1.0])
    given = [f"{key} {_text(value)}" for key, value in results.model.preprocessing.items() if value not in usual]
    if given:
        lines.append(f"It was given pixels in [0, 1] by these rules: {', '.join(map(code, given))}.")
    return [*lines, "What it is fit for beyond that is not known from an evaluation."]


def _training(record: Artifact | None) -> list[str]:
    if record is None:
        return ["Not known: the file carries no record of its training."]
    threat = ", ".join(f"{key} {_radius(value)}" for key, value in record.threat.items())
    facts = [
        ("Network", record.model),
        ("Method", record.method),
        ("Teacher", record.teacher),
        ("Dataset", record.dataset),
        ("Trained against", threat),
        ("Precision of the file", record.precision),
        *((_label(key), value) for key, value in record.training.items()),  # which may have any names
        ("Made from (SHA-256)", record.source_sha256),
        ("Versions", _text(record.versions)),
    ]
    return [f"- {prose(key)}: {code(_text(value))}" for key, value in facts if value not in ("", None, {}, [])]


def _label(key: str) -> str:
    """`Best epoch` for `best_epoch`."""
    text = plain(key).replace("_", " ")
    return text[:1].upper() + text[1:]


def _text(value: Any) -> str:
    """A value of a record as a reader writes it: `yes`, `0.1, 0.2`, `a 1, b 2`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{plain(key)} {_text(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return "none" if value is None else str(value)


def _radius(value: Any) -> str:
    """`8/255` for a fraction of 1; anything else as text."""
    return format_fraction(value) if isinstance(value, float) else _text(value)
