"""The command to copy: what the user typed for one command, as another takes it."""

from collections.abc import Sequence
from pathlib import Path

import typer

OWN = {"--json", "--quiet", "--limit", "--output", "--help"}
"""Flags that say how much work to do and where its results go, which each command has its own answer to."""


def other_command(context: typer.Context, name: str, file: Path, more: Sequence[str] = ()) -> list[str]:
    """`dgad NAME FILE` with those flags of this command line that it takes too, as they were typed.

    Args:
        name: of the other command; `attack` takes its file by --model.
        more: flags to add; those that were typed with other values are left out.
    """
    assert context.parent is not None
    theirs = {flag for each in context.parent.command.commands[name].params for flag in each.opts}  # type: ignore[attr-defined]
    kept = theirs - OWN - {"--model"} - {each for each in more if each.startswith("--")}
    takes_value = {flag: not getattr(each, "is_flag", False) for each in context.command.params for flag in each.opts}
    typed: list[str] = []
    words = iter(context.obj[2:])
    for word in words:
        flag, equals, _ = word.partition("=")
        value = [next(words, "")] if takes_value.get(flag) and flag.startswith("--") and not equals else []
        if flag in kept and flag in takes_value:
            typed += [word, *value]
    return ["dgad", name, *(["--model"] if name == "attack" else []), str(file), *typed, *more]
