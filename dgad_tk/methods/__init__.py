"""METHODS: every way to train a student. A new method is a frozen dataclass in a file of its own and a row here."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dgad_tk.common import UserError, lookup, nearest
from dgad_tk.methods.base import Batch, Method, Step
from dgad_tk.methods.dgad import Dgad
from dgad_tk.methods.pgd_at import PgdAt
from dgad_tk.methods.standard import Standard
from dgad_tk.methods.trades import Trades

METHODS: dict[str, type[Method]] = {
    "standard": Standard,
    "pgd-at": PgdAt,
    "trades": Trades,
    "dgad": Dgad,
}


def build_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method `name` with `options` in place of its defaults; `dgad.map` and `map` are the same option of dgad.

    Raises:
        UserError: unknown method, unknown option (with the nearest known one) or a value out of range.
    """
    cls = lookup(METHODS, name, "method")
    options = {key.removeprefix(f"{name}."): value for key, value in options.items()}
    known = [field.name for field in fields(cls)]
    for option in options:
        if option not in known:
            raise UserError(f"method '{name}' has no option '{option}'", hint=nearest(option, known))
    try:
        return TypeAdapter(cls).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (name, *first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {message}", hint=f"`dgad list methods` shows what '{name}' takes") from None


__all__ = ["METHODS", "Batch", "Method", "Step", "build_method"]
