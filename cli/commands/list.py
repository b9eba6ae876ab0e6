"""`dgad list`: the tables that everything derives from."""

import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any

import typer

from cli.flags.values import AsJson
from cli.printing.terminal import columns, wrapped
from dgad_tk.common import UserError, lookup


@dataclass(frozen=True)
class Row:
    """A row of a table as it is shown.

    Attributes:
        options: what can be set, with its defaults; several numbers as `--set` takes them, with commas.
    """

    name: str
    summary: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, value in self.options.items():
            self.options[key] = ",".join(map(str, value)) if isinstance(value, tuple) else value


Rows = list[Row]


def _augments() -> Rows:
    from dgad_tk.data.augment import AUGMENTS

    return [Row(name, f"{row.description} [{row.amount}]") for name, row in AUGMENTS.items()]


def _datasets() -> Rows:
    from dgad_tk.data import DATASETS

    return [Row(name, spec.description) for name, spec in DATASETS.items()]


def _methods() -> Rows:
    from dgad_tk.methods import ADDONS, METHODS

    rows = []
    for name, method in [*METHODS.items(), *((f"+{name}", addon) for name, addon in ADDONS.items())]:
        options = {each.name: each.default for each in fields(method) if each.default is not MISSING}
        summary = " ".join((method.__doc__ or "").split("\n\n")[0].split())
        if name.startswith("+"):
            summary += f" For methods that distil and attack, alone or with others: --method adaad{name}"
        rows.append(Row(name, summary, options))
    return rows


def _models() -> Rows:
    import torch

    from dgad_tk.models import FAMILIES, LIBRARIES, MODELS, NOTES, count_parameters
    from dgad_tk.models.own import PLACES, distribution_of, entry_point_names

    rows = []
    with torch.device("meta"):  # networks without memory
        for name, build in MODELS.items():
            summary = f"{count_parameters(build(3, 10)):,} parameters for 3 channels and 10 classes"
            rows.append(Row(name, f"{summary}: {NOTES[name]}" if name in NOTES else summary))
    rows += [Row(name, (family.__doc__ or "").splitlines()[0]) for name, family in FAMILIES.items()]
    rows += [Row(f"{library}:NAME", f"any classifier of {library}, untrained") for library in LIBRARIES]
    rows += [Row(name, summary) for name, summary in PLACES.items()]
    return rows + [
        Row(name, f"{' and '.join(f'{each.value} of {distribution_of(each)}' for each in entries)}")
        for name, entries in sorted(entry_point_names().items())
        if name not in MODELS
    ]


def _attacks() -> Rows:
    from evaluators.attacks import ATTACKS

    return [
        Row(name, f"{spec.kind}, {', '.join(spec.norms)}: {spec.description}", dict(spec.settings(name, {})))
        for name, spec in ATTACKS.items()
    ]


def _suites() -> Rows:
    from evaluators.plan.suites import SUITES

    return [Row(name, ", ".join(attacks)) for name, attacks in SUITES.items()]


def _forms() -> Rows:
    from evaluators.report.forms.table import FORMS

    return [Row(name, f"{each.filename}: {each.description}") for name, each in FORMS.items()]


def _formats() -> Rows:
    from exporters.formats import EXPORTERS

    return [Row(name, f"{each.filename}{each.note and f': {each.note}'}") for name, each in EXPORTERS.items()]


def _preprocessings() -> Rows:
    from cli.printing.preprocessings import flags_of
    from evaluators.preprocessings.table import PREPROCESSINGS

    return [
        Row(name, f"{row.summary} {' '.join(flags_of(row.interface))}".strip()) for name, row in PREPROCESSINGS.items()
    ]


def _optimizers() -> Rows:
    from dgad_tk.config.optimizers import OPTIMIZERS
    from dgad_tk.config.training import TrainConfig

    rows = []
    for name, row in OPTIMIZERS.items():
        keys = ["lr", "weight_decay", *row.takes.values()]
        usual = {key: TrainConfig.model_fields[key].default for key in keys} | dict(row.defaults)
        rows.append(Row(name, row.description, usual))
    return rows


def _recipes() -> Rows:
    from dgad_tk.config.recipe import load_recipe, recipe_names

    return [Row(name, load_recipe(name).summary) for name in recipe_names()]


def _schemas() -> Rows:
    from cli.documents.table import DOCUMENTS

    return [Row(name, each.found) for name, each in DOCUMENTS.items()]


TABLES: dict[str, Callable[[], Rows]] = {
    "attacks": _attacks,
    "augments": _augments,
    "datasets": _datasets,
    "formats": _formats,
    "forms": _forms,
    "methods": _methods,
    "models": _models,
    "optimizers": _optimizers,
    "preprocessings": _preprocessings,
    "recipes": _recipes,
    "schemas": _schemas,
    "suites": _suites,
}
SCHEMA = "schema"
"""What is no table: the JSON Schema of one document."""


def list_table(
    what: Annotated[
        str,
        typer.Argument(
            help="attacks, augments, datasets, formats, forms (of a report), methods, models, optimizers, "
            "preprocessings, recipes, suites or schemas; schema for one of these."
        ),
    ],
    name: Annotated[str | None, typer.Argument(help="With schema: which, such as export. [results]")] = None,
    as_json: AsJson = False,
) -> None:
    """List what there is to choose from."""
    if what == SCHEMA:
        from cli.documents.table import json_schema

        print(json.dumps(json_schema(name or "results"), indent=2))
        return
    rows = lookup({**TABLES, SCHEMA: list}, what, "table")()
    if name is not None:
        raise UserError(f"`dgad list {what}` takes no name, got '{name}'", hint=f"`dgad list {what}` alone lists all")
    if as_json:
        print(json.dumps({"schema": "dgad/list/1", "table": what, "rows": [vars(row) for row in rows]}))
        return
    limit = columns(sys.stdout)
    width = max(len(row.name) for row in rows) + 2
    below = limit is not None and limit - width < limit // 2  # long names: what they mean stands under them
    indent = 4 if below else width
    for row in rows:
        print(row.name if below else f"{row.name:<{width}}", end="\n" if below else "")
        texts = [row.summary, *([" ".join(f"{key}={value}" for key, value in row.options.items())] * bool(row.options))]
        lines = [line for text in texts for line in wrapped(text, limit and limit - indent, 0)]
        print((" " * indent if below else "") + f"\n{' ' * indent}".join(lines))
