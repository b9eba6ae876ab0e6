"""Recipes: configs that build on one another, with what the paper prints for them.

A recipe is a YAML file of TrainConfig's keys and of two more: `extends` names another recipe or file whose keys it
takes over, and `paper` holds what the paper prints for this run, where that is from and how the table was read.

Importing this file imports no torch, so that the command line can list recipes at once.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgad_tk.common import UserError
from dgad_tk.config.parsing import read_yaml, typed
from dgad_tk.config.training import TrainConfig

RECIPES = Path(__file__).parent / "recipes"
"""Those that come with the package. Folders whose name begins with an underscore hold what others extend."""

_FIGURES = {"clean": "clean", "fgsm": "FGSM", "pgd": "PGD", "cw": "CW", "aa": "AA"}


@dataclass(frozen=True)
class Recipe:
    """A recipe with everything that it extends.

    Attributes:
        name: what it was asked for as.
        values: keys of a TrainConfig, not validated yet.
        paper: `table`, `row`, `figures` (percent), `source`, `reading`, `teacher_file`, each where it is known.
    """

    name: str
    values: dict[str, Any]
    paper: dict[str, Any]

    @property
    def summary(self) -> str:
        """One line: method, student, teacher, dataset, and the paper's figures."""

        def value(key: str) -> str:
            return str(self.values.get(key, TrainConfig.model_fields[key].default))

        teacher = f" <- {value('teacher_model')}" if value("teacher_model") else ""
        figures = printed_figures(self.paper)
        return f"{value('method')} {value('student')}{teacher} on {value('dataset')}" + (
            f"; paper: {figures}" if figures else ""
        )


def load_recipe(name: str) -> Recipe:
    """The recipe or YAML file `name`, with what it extends merged into it.

    Args:
        name: path of a file, or of a recipe below `recipes/` without its `.yaml`.

    Raises:
        UserError: no such recipe or file, not YAML, or it extends itself.
    """
    values = _merged(_find(name, Path(), f"unknown recipe '{name}'"), ())
    return Recipe(name, values, values.pop("paper", None) or {})


def recipe_names() -> list[str]:
    """Every recipe that can be run, sorted."""
    names = (path.relative_to(RECIPES).with_suffix("") for path in RECIPES.rglob("*.yaml"))
    return sorted(name.as_posix() for name in names if not any(part.startswith("_") for part in name.parts))


def printed_figures(paper: Mapping[str, Any]) -> str:
    """`clean 87.58, AA 50.59`, as far as the paper's figures are known."""
    figures = paper.get("figures")
    found = figures if isinstance(figures, dict) else {}
    return ", ".join(f"{label} {found[key]:.2f}" for key, label in _FIGURES.items() if _is_number(found.get(key)))


def printed_place(paper: Mapping[str, Any]) -> str:
    """`test set, Table 4, second hand`: what the figures are of, where they stand, and whether we saw them there."""
    table = paper.get("table")
    where = f", Table {table}" if isinstance(table, int) else f", {str(table).capitalize()}" if table else ""
    return "test set" + where + (", second hand" if "second hand" in str(paper.get("source", "")) else "")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _find(name: str, folder: Path, unknown: str) -> Path:
    """The file behind a name: one in `folder`, else a recipe of the package."""
    path, recipe = folder / name, RECIPES / f"{name}.yaml"
    if path.is_file():
        return path
    if recipe.is_file():
        return recipe
    if path.suffix in (".yaml", ".yml"):
        return path  # reading it says what is wrong
    close = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = (
        f"did you mean '{close[0]}'?" if close else "`dgad list recipes` shows them; a file of your own ends in .yaml"
    )
    raise UserError(unknown, hint=hint)


def _merged(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    """A file's keys over those of what it extends; `chain` are the files that extend it."""
    if path.resolve() in chain:
        way = " -> ".join(each.stem for each in (*chain, path.resolve()))
        raise UserError(f"'{path}' extends itself: {way}", hint="take one `extends` out")
    own = read_yaml(path)
    base = own.pop("extends", None)
    if not isinstance(own.get("paper", {}), dict | None):
        raise UserError(f"'{path}': paper must hold keys and values, got {own['paper']!r}", hint="such as `table: 4`")
    own = typed(TrainConfig, own, f"'{path}': ")
    if base is None:
        return own
    if not isinstance(base, str):
        raise UserError(f"'{path}': extends must name one recipe or file, got {base!r}", hint="such as `default`")
    found = _find(base, path.parent, f"'{path}' extends an unknown recipe '{base}'")
    return over(_merged(found, (*chain, path.resolve())), own)


def over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `own` over those of `base`, mapping by mapping."""
    both = dict(base)
    for key, value in own.items():
        held = both.get(key)
        both[key] = over(held, value) if isinstance(held, dict) and isinstance(value, dict) else value
    return both
