"""What a run's settings differ in from the defaults, and the flags that make the same run again."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dgad_tk.common import UserError
from dgad_tk.config.training import TrainConfig
from dgad_tk.data import DATASETS
from dgad_tk.methods import default_options, find_method
from dgad_tk.strangers.number_text import format_fraction, parse_fraction


@dataclass(frozen=True)
class Difference:
    """A setting that is not the default.

    Attributes:
        key: as `--set` takes it, such as `threat.eps` or `dgad.pcr_weight`.
        value: this run's, as `--set` takes it.
        default: the default's, for this dataset and method.
    """

    key: str
    value: str
    default: str

    @property
    def flag(self) -> str:
        """What makes it on the command line."""
        return f"--set {shlex.quote(f'{self.key}={self.value}')}"


def differences(config: TrainConfig) -> list[Difference]:
    """The settings of a resolved config that `dgad train --dataset ... --method ...` alone would not have made.

    Of a threat model, the default radius is the dataset's for the norm and the default step a quarter of the radius.
    What belongs to a teacher is left out for a method without one.

    Raises:
        UserError: there is no such dataset.
    """
    chosen: dict[str, Any] = {"dataset": config.dataset, "method": config.method}
    plain = TrainConfig.model_validate(chosen).resolved()
    # An auto teacher's settings follow from the student's and from how it is trained.
    chosen |= {key: getattr(config, key) for key in ("teacher", "teacher_method")}
    chosen |= {key: getattr(config, key) for key in ("epochs", "lr") if getattr(config, key) != getattr(plain, key)}
    with_teacher = TrainConfig.model_validate(chosen).resolved()
    needs_teacher = _needs_teacher(config.method)
    found: list[Difference] = []
    for key in TrainConfig.model_fields:
        if key in ("dataset", "method", "paper") or (key.startswith("teacher") and not needs_teacher):
            continue
        if key == "threat":
            found += _of_threat(config, plain)
        elif key == "method_options":
            found += _of_options(config.method, config.method_options, {}, f"{config.method.partition('+')[0]}.")
        elif key == "teacher_options":
            default = with_teacher.teacher_options
            found += _of_options(config.teacher_method, config.teacher_options, default, "teacher_options.")
        else:
            reference = plain if key in chosen else with_teacher
            mine, theirs = getattr(config, key), getattr(reference, key)
            if mine != theirs:
                found.append(Difference(key, _text(mine), _text(theirs)))
    return found


def command(config: TrainConfig, found: list[Difference]) -> str:
    """The command that makes the same settings again, a setting a line."""
    flags = [f"--dataset {shlex.quote(config.dataset)}", f"--method {shlex.quote(config.method)}"]
    return " \\\n  ".join([" ".join(["dgad train", *flags]), *(each.flag for each in found)])


def _needs_teacher(method: str) -> bool:
    try:
        return find_method(method).needs_teacher
    except UserError:  # a method of another version
        return True


def _of_threat(config: TrainConfig, plain: TrainConfig) -> list[Difference]:
    mine, theirs = config.attack, plain.attack
    eps = DATASETS[config.dataset].eps.get(mine.norm)
    pairs = {
        "norm": (mine.norm, theirs.norm),
        "eps": (mine.eps, eps),
        "step_size": (mine.step_size, mine.eps / 4),
        "steps": (mine.steps, theirs.steps),
    }
    return [
        Difference(f"threat.{key}", _radius(value), _radius(default))
        for key, (value, default) in pairs.items()
        if value != default
    ]


def _radius(value: Any) -> str:
    """`8/255` where that reads back as the same number."""
    short = format_fraction(value) if isinstance(value, float) else ""
    return short if short and parse_fraction(short, upper=math.inf) == value else _text(value)


def _of_options(
    method: str, mine: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str
) -> list[Difference]:  # fmt: skip
    """Hyper-parameters of a method that are not its defaults, or not those that the dataset has for it."""
    keys = list(dict.fromkeys([*mine, *theirs]))
    try:
        own = default_options(method, keys)
    except UserError:  # a method or an option of another version
        own = {}
    return [
        Difference(key if "." in key and prefix != "teacher_options." else prefix + key, _text(value), _text(default))
        for key in keys
        if (value := mine.get(key, own.get(key))) != (default := theirs.get(key, own.get(key)))
    ]


def _text(value: Any) -> str:
    """A value as `--set` takes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)
