"""`dgad list`: the tables that everything derives from."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated

import typer

from dgad_tk.common import lookup

Lines = list[tuple[str, str]]


def _datasets() -> Lines:
    from dgad_tk.data import DATASETS

    return [(name, spec.description) for name, spec in DATASETS.items()]


def _methods() -> Lines:
    from dgad_tk.methods import ADDONS, METHODS

    lines = []
    for name, method in [*METHODS.items(), *((f"+{name}", addon) for name, addon in ADDONS.items())]:
        options = " ".join(f"{each.name}={each.default}" for each in fields(method) if each.default is not MISSING)
        summary = " ".join((method.__doc__ or "").split("\n\n")[0].split())
        if name.startswith("+"):
            summary += f" For methods that distil and attack: --method adaad{name}"
        lines.append((name, f"{summary}\n{options}" if options else summary))
    return lines


def _models() -> Lines:
    import torch

    from dgad_tk.models import FAMILIES, LIBRARIES, MODELS, NOTES, count_parameters

    lines = []
    with torch.device("meta"):  # networks without memory
        for name, build in MODELS.items():
            summary = f"{count_parameters(build(3, 10)):,} parameters for 3 channels and 10 classes"
            lines.append((name, f"{summary}: {NOTES[name]}" if name in NOTES else summary))
    lines += [(name, (family.__doc__ or "").splitlines()[0]) for name, family in FAMILIES.items()]
    return lines + [(f"{library}:NAME", f"any classifier of {library}, untrained") for library in LIBRARIES]


def _attacks() -> Lines:
    from evaluators.attacks import ATTACKS

    lines = []
    for name, spec in ATTACKS.items():
        options = " ".join(f"{key}={value}" for key, value in spec.settings(name, {}).items())
        summary = f"{spec.kind}, {', '.join(spec.norms)}: {spec.description}"
        lines.append((name, f"{summary}\n{options}" if options else summary))
    return lines


def _suites() -> Lines:
    from evaluators.plan.suites import SUITES

    return [(name, ", ".join(attacks)) for name, attacks in SUITES.items()]


def _forms() -> Lines:
    from evaluators.report.forms.table import FORMS

    width = max(len(each.filename) for each in FORMS.values())
    return [(name, f"{each.filename:<{width}}  {each.description}") for name, each in FORMS.items()]


def _formats() -> Lines:
    from exporters.formats import EXPORTERS

    width = max(len(each.filename) for each in EXPORTERS.values())
    return [(name, f"{each.filename:<{width}}  {each.note}".strip()) for name, each in EXPORTERS.items()]


def _recipes() -> Lines:
    from dgad_tk.config.recipe import load_recipe, recipe_names

    return [(name, load_recipe(name).summary) for name in recipe_names()]


def _schema() -> Lines:
    import json

    from evaluators.results import Results

    return [("", json.dumps(Results.model_json_schema(mode="serialization"), indent=2))]


TABLES: dict[str, Callable[[], Lines]] = {
    "attacks": _attacks,
    "datasets": _datasets,
    "formats": _formats,
    "forms": _forms,
    "methods": _methods,
    "models": _models,
    "recipes": _recipes,
    "schema": _schema,
    "suites": _suites,
}


def list_table(
    what: Annotated[
        str,
        typer.Argument(
            help="attacks, datasets, formats, forms (of a report), methods, models, recipes, schema (of results.json) "
            "or suites."
        ),
    ],
) -> None:
    """List what there is to choose from."""
    lines = lookup(TABLES, what, "table")()
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        print(f"{name:<{width}}  " + text.replace("\n", "\n" + " " * (width + 2)))
