"""Recipes: configs that extend one another, with the figures that the paper prints for them.

A recipe is a YAML file with keys of TrainConfig and two more: `extends` names another recipe or file whose keys it
takes over; `paper` holds the printed figures, their source and how the table was read. Imports no torch, so that the
command line lists recipes quickly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgad_tk.common import UserError, nearest
from dgad_tk.config.parsing import read_yaml, typed
from dgad_tk.config.training import TrainConfig

RECIPES = Path(__file__).parent / "recipes"
"""The package's own. A folder whose name begins with an underscore holds recipes that are only extended."""

_FIGURES = {"clean": "clean", "fgsm": "FGSM", "pgd": "PGD", "cw": "CW", "aa": "AA"}


@dataclass(frozen=True)
class Recipe:
    """A recipe with everything that it extends.

    Attributes:
        values: keys of a TrainConfig, not validated yet.
        paper: those known of `table`, `row`, `figures` (percent), `source`, `reading`, `teacher_file`; of the package's
            own recipes also `recipe`, the name.
    """

    values: dict[str, Any]
    paper: dict[str, Any]

    @property
    def summary(self) -> str:
        """One line: method, student, teacher, dataset, and the paper's figures."""
        keys = ("method", "student", "teacher_model", "dataset")
        method, student, teacher, dataset = (
            self.values.get(key, TrainConfig.model_fields[key].default) for key in keys
        )
        figures = printed_figures(self.paper)
        return (
            f"{method} {student}{f' <- {teacher}' if teacher else ''} on {dataset}"
            f"{f'; paper: {figures}' if figures else ''}"
        )


def load_recipe(name: str) -> Recipe:
    """The recipe or YAML file `name`, merged with what it extends.

    Args:
        name: path of a file, or of a recipe below `recipes/` without `.yaml`.

    Raises:
        UserError: there is no such recipe or file, it is not YAML, or it extends itself.
    """
    path = _find(name, Path(), f"unknown recipe '{name}'")
    values = _merged(path, ())
    paper = values.pop("paper", None) or {}
    if paper and path.is_relative_to(RECIPES):
        paper = {"recipe": path.relative_to(RECIPES).with_suffix("").as_posix(), **paper}
    return Recipe(values, paper)


def recipe_names() -> list[str]:
    """All recipes that can be run, sorted."""
    names = (path.relative_to(RECIPES).with_suffix("") for path in RECIPES.rglob("*.yaml"))
    return sorted(name.as_posix() for name in names if not any(part.startswith("_") for part in name.parts))


def printed_figures(paper: Mapping[str, Any]) -> str:
    """The known figures of the paper, such as `clean 87.58, AA 50.59`."""
    return ", ".join(f"{label} {figure:.2f}" for label, figure in known_figures(paper).items())


def known_figures(paper: Mapping[str, Any]) -> dict[str, float]:
    """The known figures of the paper in per cent, by what people call them: `{"clean": 87.58, "AA": 50.59}`."""
    figures = paper.get("figures")
    found = figures if isinstance(figures, dict) else {}
    return {label: float(found[key]) for key, label in _FIGURES.items() if type(found.get(key)) in (int, float)}


def printed_place(paper: Mapping[str, Any]) -> str:
    """`test set, Table 4, second hand`: the split, the place in the paper, and whether another paper quotes it."""
    table = paper.get("table")
    where = f", Table {table}" if isinstance(table, int) else f", {str(table).capitalize()}" if table else ""
    return "test set" + where + (", second hand" if "second hand" in str(paper.get("source", "")) else "")


def _find(name: str, folder: Path, unknown: str) -> Path:
    """The file behind a name: one in `folder`, else a recipe of the package."""
    path, recipe = folder / name, RECIPES / f"{name}.yaml"
    if path.is_file():
        return path
    if recipe.is_file():
        return recipe
    if path.suffix in (".yaml", ".yml"):
        return path  # reading it reports the error
    otherwise = "`dgad list recipes` shows them; a file of your own ends in .yaml"
    raise UserError(unknown, hint=nearest(name, recipe_names(), otherwise))


def _merged(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    """A file's keys over those that it extends; `chain` holds the files that extend it."""
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
