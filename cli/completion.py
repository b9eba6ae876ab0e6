"""What the shell offers after a flag: rows of the tables that `dgad list` shows, and files where files belong.

An answer has to come within the blink between two keys, and the tables stand in modules that import torch. So their
names are read from the source of those modules, in which each table is a literal.
"""

import ast
import inspect
import io
import os
import typing
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from typer.models import ParameterInfo

from cli.commands.list import SCHEMA, TABLES
from cli.flags.preprocessing import CHANNEL_ORDERS, LAYOUTS
from cli.flags.values import NORMS, SEARCH_PRECISIONS, SPLITS

Names = Callable[[str], list[str]]
"""From what was typed so far to all names that may follow."""

MODELS_GROUP = "dgad_tk.models"
"""Entry points of networks, as `dgad_tk.models.own` has it, whose package imports torch."""

ASKED = "_DGAD_COMPLETE"
"""The variable by which a shell asks for completion."""


def table(module: str, variable: str, prefix: str = "") -> Names:
    """Names of the rows of a literal table, read from its source.

    Args:
        prefix: stands before each of them.
    """
    return lambda _: [f"{prefix}{key}" for key in keys_of(module, variable)]


def keys_of(module: str, variable: str) -> list[str]:
    """The literal keys of the dict `variable` in the source of `module`, which is not imported.

    Raises:
        LookupError: the module assigns no such literal.
    """
    package, *parts = module.split(".")
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    place = Path(spec.submodule_search_locations[0]).joinpath(*parts)
    source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    for node in ast.parse(source.read_bytes()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict) and any(isinstance(each, ast.Name) and each.id == variable for each in targets):
            return [key.value for key in value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    raise LookupError(f"{module} has no literal {variable}")


_WHITE_BOX = table("evaluators.attacks", "ATTACKS")
_ART = table("evaluators.attacks.art.table", "ART_ATTACKS", "art:")
_METHODS = table("dgad_tk.methods", "METHODS")
_AUGMENTS = table("dgad_tk.data.augment", "AUGMENTS")
_ADDONS = table("dgad_tk.methods", "ADDONS")
_TRANSFER = "transfer:"


def _attacks(typed: str) -> list[str]:
    """All attacks; made on a surrogate only once that was begun, since there are as many again."""
    names = [*_WHITE_BOX(typed), *_ART(typed)]
    begun = typed and (_TRANSFER.startswith(typed) or typed.startswith(_TRANSFER))
    return [*names, *(f"{_TRANSFER}{name}" for name in names)] if begun else names


def _methods(typed: str) -> list[str]:
    """All methods; behind one that is complete, with each add-on that it does not have yet."""
    taken = typed.split("+")
    known = _METHODS(typed)
    if len(taken) > 1:
        taken = taken[:-1]
    if taken[0] not in known:
        return known
    return known + ["+".join([*taken, addon]) for addon in _ADDONS(typed) if addon not in taken]


def _augments(typed: str) -> list[str]:
    """Of a list with commas, what may follow the last of them."""
    begun = typed.rpartition(",")[0]
    taken = {each.partition(":")[0] for each in begun.split(",")}
    return [f"{begun}{begun and ','}{name}" for name in _AUGMENTS(typed) if name not in taken]


def _models(typed: str) -> list[str]:
    """Rows of the table, and entry points, which need no torch to be listed."""
    from importlib.metadata import entry_points

    return [
        *table("dgad_tk.models", "MODELS")(typed),
        *sorted({each.name for each in entry_points(group=MODELS_GROUP)}),
    ]


def _recipes(_: str) -> list[str]:
    from dgad_tk.config.recipe import recipe_names

    return recipe_names()


def _key(name: str) -> Names:
    """The values of a key of config.yaml that has few."""

    def values(_: str) -> list[str]:
        from dgad_tk.config.training import TrainConfig

        return list(typing.get_args(TrainConfig.model_fields[name].annotation))

    return values


def _in_attack(_: str) -> list[str]:
    from dgad_tk.config.threat import TeacherInAttack

    return list(typing.get_args(TeacherInAttack))


def _files(_: str) -> list[str]:
    """Nothing, so that the shell offers files."""
    return []


VALUES: dict[str, Names] = {
    "attack.attack": _attacks,
    "attack.suite": table("evaluators.plan.suites", "SUITES"),
    "attack.norm": lambda _: list(NORMS),
    "attack.search_precision": lambda _: list(SEARCH_PRECISIONS),
    "attack.split": lambda _: list(SPLITS),
    "bench.provider": table("exporters.bench.worker", "PROVIDERS"),
    "export.format": lambda typed: [*table("exporters.formats", "EXPORTERS")(typed), "all"],
    "export.calibrate_on": table("exporters.onnx_write.int8", "IMAGES"),
    "export.calibration_method": table("exporters.onnx_write.calibration", "CALIBRATORS"),
    "inspect.split": lambda _: list(SPLITS),
    "list.what": lambda _: [*TABLES, SCHEMA],
    "list.name": table("cli.documents.table", "DOCUMENTS"),
    "report.form": table("evaluators.report.forms.table", "FORMS"),
    "train.augment": _augments,
    "train.config": _recipes,
    "train.device": _key("device"),
    "train.method": _methods,
    "train.optimizer": table("dgad_tk.config.optimizers", "OPTIMIZERS"),
    "train.precision": _key("precision"),
    "train.student": _models,
    "train.teacher_in_attack": _in_attack,
    "train.teacher_method": _methods,
    "train.teacher_model": _models,
    "dataset": table("dgad_tk.data", "DATASETS"),
    "classes": _files,
    "channel_order": lambda _: list(CHANNEL_ORDERS),
    "layout": lambda _: list(LAYOUTS),
    "resize": table("dgad_tk.data.images.resize", "RESIZES"),
}
"""By parameter, of one command or of all that have it."""


def complete_values(name: str, command: Callable[..., None]) -> None:
    """Tell Typer what to offer for each parameter of a command."""
    for parameter in inspect.signature(command).parameters.values():
        offered = VALUES.get(f"{name}.{parameter.name}") or VALUES.get(parameter.name)
        if offered is None and Path in _types(parameter.annotation):
            offered = _files  # Typer would offer what was typed, as if that were a file
        for info in getattr(parameter.annotation, "__metadata__", ()):
            if isinstance(info, ParameterInfo) and offered is not None:
                info.autocompletion = _for_typer(offered)


def _for_typer(offered: Names) -> Names:
    def complete(incomplete: str) -> list[str]:  # by its name, Typer knows what to hand over
        return offered(incomplete)

    return complete


def _types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in typing.get_args(annotation):
        yield from _types(part)


def answer_bash(run: Callable[[], object], environment: MutableMapping[str, str] = os.environ) -> None:
    """Answer a request of bash, which takes `transfer:pgd` and `--attack=pgd` for three words each.

    They are put together before Typer sees them. What bash holds for words of their own is left out of the answer.

    Args:
        run: has Typer answer on stdout, by the variables in `environment`.
    """
    at = int(environment.get("COMP_CWORD", "0"))
    joined: list[str] = []
    glue, word = False, ""
    for word in environment.get("COMP_WORDS", "").split("\n")[: at + 1]:
        separates = word != "" and set(word) <= {":", "="}
        if joined and (separates or glue):
            joined[-1] += word
        else:
            joined.append(word)
        glue = separates
    environment["COMP_WORDS"], environment["COMP_CWORD"] = "\n".join(joined), str(len(joined) - 1)
    before = joined[-1] if glue else joined[-1].removesuffix(word)
    before = before.rpartition("=")[2]
    answer = io.StringIO()
    try:
        with redirect_stdout(answer):
            run()
    finally:
        print("\n".join(line.removeprefix(before) for line in answer.getvalue().splitlines()))
