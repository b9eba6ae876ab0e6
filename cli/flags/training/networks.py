"""Networks of a user's own that a run names: which of them may be run, and how the run is gone on with."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from dgad_tk.common import UserError

if TYPE_CHECKING:
    from dgad_tk.config.training import TrainConfig

KEYS = ("student", "teacher_model")
"""Keys of a config that name networks."""


def check_typed(config: "TrainConfig", typed: Collection[str], *, trust: bool) -> None:
    """See that source code which a config file or a run folder names is run only if the user says so.

    Who types the name of a file runs that file. Who types the name of a config, or of a run folder to go on with, may
    not know what these name.

    Args:
        typed: keys that the user gave as flags, by `--set` or as variables.

    Raises:
        UserError: a network is source code, and neither typed nor trusted.
    """
    from dgad_tk.models.own import names_code

    for key in KEYS:
        name = getattr(config, key)
        if names_code(name) and key not in typed and not trust:
            flag = f"--{key.replace('_', '-')}"
            raise UserError(
                f"the config names '{name}' as {key}, which is source code that would be run",
                hint=f"--trust runs it; or name it yourself: {flag} {name}",
            )


def needs_trust(config: "TrainConfig", *keys: str) -> bool:
    """Whether one of the networks of a run, by their `keys`, is source code, so that it is opened only with --trust."""
    from dgad_tk.models.own import names_code

    return any(names_code(getattr(config, key)) for key in keys or KEYS)
