"""METHODS: every way to train a student. A new method is a frozen dataclass in a file of its own and a row here."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dgad_tk.common import UserError, lookup, nearest
from dgad_tk.config.parsing import fitted, hints_of
from dgad_tk.methods.adaad import AdaAd, AdaIad
from dgad_tk.methods.akd import Akd
from dgad_tk.methods.alp import Alp
from dgad_tk.methods.ard import Ard
from dgad_tk.methods.base import AddOn, AdversarialMethod, Batch, Method, Step
from dgad_tk.methods.classwise import Classwise
from dgad_tk.methods.dgad import Dgad
from dgad_tk.methods.iad import Iad
from dgad_tk.methods.igdm import Igdm
from dgad_tk.methods.kd import Kd
from dgad_tk.methods.mart import Mart
from dgad_tk.methods.pgd_at import PgdAt
from dgad_tk.methods.rslad import Rslad
from dgad_tk.methods.saad import Saad
from dgad_tk.methods.score import Score
from dgad_tk.methods.standard import Standard
from dgad_tk.methods.trades import Trades

METHODS: dict[str, type[Method]] = {
    "standard": Standard,
    "pgd-at": PgdAt,
    "trades": Trades,
    "mart": Mart,
    "alp": Alp,
    "score": Score,
    "kd": Kd,
    "ard": Ard,
    "iad": Iad,
    "rslad": Rslad,
    "akd": Akd,
    "adaad": AdaAd,
    "adaiad": AdaIad,
    "dgad": Dgad,
}

ADDONS: dict[str, type[AddOn]] = {
    "igdm": Igdm,
    "saad": Saad,
    "classwise": Classwise,
}
"""What can be added to a method that distils and attacks: `--method adaad+igdm+saad`. They are put around it in this
order, whatever the order of their names: so saad weighs what igdm adds, and classwise softens what saad distils."""


def split_name(name: str) -> tuple[str, list[str]]:
    """The row of METHODS behind `adaad+saad+igdm`, and its rows of ADDONS in their own order, `[igdm, saad]`.

    Raises:
        UserError: no such method or add-on, an add-on given twice, or add-ons to a method that does not distil.
    """
    base, *addons = name.split("+")
    lookup(METHODS, base, "method")
    for addon in addons:
        lookup(ADDONS, addon, "add-on")
        if addons.count(addon) > 1:
            raise UserError(f"add-on '{addon}' is given twice in '{name}'", hint=f"name it once: {base}+{addon}")
    fitting = [row for row, each in METHODS.items() if each.needs_teacher and issubclass(each, AdversarialMethod)]
    if addons and base not in fitting:
        raise UserError(
            f"'{addons[0]}' needs a method that attacks and has a teacher, '{base}' is none",
            hint="one of " + ", ".join(fitting),
        )
    return base, [row for row in ADDONS if row in addons]


def find_method(name: str) -> type[Method]:
    """The row of METHODS behind `adaad` or `adaad+igdm`.

    Raises:
        UserError: as `split_name`.
    """
    return METHODS[split_name(name)[0]]


def build_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method `name` with `options` in place of its defaults; `dgad.map` and `map` are the same option of dgad.

    Args:
        name: row of METHODS, and perhaps plus signs and add-ons (`adaad+igdm+saad`).
        options: those of an add-on carry its name (`igdm.weight`).

    Raises:
        UserError: unknown method, unknown option (with the nearest known one) or a value out of range.
    """
    base, addons = split_name(name)
    of: dict[str, dict[str, Any]] = {part: {} for part in (base, *addons)}
    for key, (owner, option) in _owners(name, options).items():
        of[owner][option] = options[key]
    method = _validated(METHODS[base], base, of[base])
    for addon in addons:
        method = _validated(ADDONS[addon], addon, {"base": method, **of[addon]})
    return method


def typed_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the method `name` with each text read by the type of its field: `10` is a number, or stays a text.

    Raises:
        UserError: as `build_method`.
    """
    return _values(name, build_method(name, options), options)


def default_options(name: str, options: Iterable[str]) -> dict[str, Any]:
    """The defaults of these options of the method `name`, under the same keys.

    Raises:
        UserError: unknown method or option.
    """
    return _values(name, build_method(name, {}), options)


def _values(name: str, method: Method, options: Iterable[str]) -> dict[str, Any]:
    """What `options` are in a method that `build_method` made under this name."""
    base, addons = split_name(name)
    parts: dict[str, Method] = {}
    for addon in reversed(addons):
        parts[addon] = method
        if isinstance(method, AddOn):
            method = method.base
    parts[base] = method
    found = {}
    for key, (owner, option) in _owners(name, options).items():
        known = [field.name for field in fields(parts[owner])]
        if option not in known:
            raise UserError(f"method '{owner}' has no option '{option}'", hint=nearest(option, known))
        found[key] = getattr(parts[owner], option)
    return found


def _owners(name: str, options: Iterable[str]) -> dict[str, tuple[str, str]]:
    """By key: the method or add-on that the option belongs to, and the option's own name."""
    base, addons = split_name(name)
    found: dict[str, tuple[str, str]] = {}
    for key in options:
        owner, _, option = key.rpartition(".")
        if owner in ADDONS and owner not in addons:
            raise UserError(f"option '{key}' needs --method {name}+{owner}", hint=f"'{owner}' is an add-on")
        place = (owner, option) if owner in (base, *addons) else (base, key)
        if place in found.values():
            raise UserError(f"option '{place[1]}' of '{place[0]}' is given twice", hint=f"once as '{key}': drop one")
        found[key] = place
    return found


def _where_else(option: str, known: list[str]) -> str:
    """Which methods have an option that this one has not; else the nearest of those `known`."""
    others = [name for name, each in (METHODS | ADDONS).items() if option in (field.name for field in fields(each))]
    return f"it is an option of {', '.join(others)}" if others else nearest(option, known)


def _validated(cls: type[Method], name: str, options: Mapping[str, Any]) -> Method:
    known = [field.name for field in fields(cls)]
    for option in options:
        if option not in known:
            raise UserError(f"method '{name}' has no option '{option}'", hint=_where_else(option, known))
    read = {option: fitted(hints_of(cls)[option], value, f"{name}.{option}") for option, value in options.items()}
    try:
        return TypeAdapter(cls).validate_python(read)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (name, *first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {message}", hint=f"`dgad list methods` shows what '{name}' takes") from None


__all__ = [
    "ADDONS",
    "METHODS",
    "Batch",
    "Method",
    "Step",
    "build_method",
    "default_options",
    "find_method",
    "split_name",
    "typed_options",
]
