"""Settings given as text: `--set key=value` and `DGAD_*` variables. Each is read by the type of its key."""

from collections.abc import Mapping, Sequence
from typing import Any

from dgad_tk.common import UserError, nearest
from dgad_tk.config.parsing import hints_of, read_text
from dgad_tk.config.threat import ThreatModel
from dgad_tk.config.training import TrainConfig

ENVIRONMENT_PREFIX = "DGAD_"
_NOT_CONFIG = {"DGAD_CACHE"}


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Config values from `DGAD_*` variables: `DGAD_EPOCHS=5` is `epochs: 5`. UserError for an unknown key or value."""
    hints, found = hints_of(TrainConfig), {}
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name in _NOT_CONFIG:
            continue
        key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
        if key not in TrainConfig.model_fields:
            raise UserError(f"environment variable {name} names no key", hint=nearest(key, TrainConfig.model_fields))
        found[key] = read_text(hints[key], text, name)
    return found


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`--set` arguments as config values: `lr=0.05`, `threat.eps=8/255`, `dgad.pcr_weight=10`.

    Before the dot is a key of the config that holds keys, or a method. Options of methods stay text until the method
    is built, which also finds wrong names.

    Raises:
        UserError: not of the form key=value, or not a value of the key.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, text = parse_setting(setting)
        owner, dot, name = key.partition(".")
        if not dot:
            values[key] = read_text(hints_of(TrainConfig).get(key, str), text, f"--set {key}")
            continue
        owner, name = (owner, name) if owner in TrainConfig.model_fields else ("method_options", key)
        held = values.setdefault(owner, {})
        if not isinstance(held, dict):
            raise UserError(f"--set {setting}: '{owner}' was set to {held!r} before", hint="set one or the other")
        hints = hints_of(ThreatModel) if owner == "threat" else {}
        held[name] = read_text(hints.get(name, Any if owner == "paper" else str), text, f"--set {key}")
    return values


def parse_setting(setting: str) -> tuple[str, str]:
    """The key and the value of `key=value`; UserError for another form."""
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise UserError(f"--set needs key=value, got '{setting}'", hint="for example --set lr=0.05")
    return key.strip(), text
