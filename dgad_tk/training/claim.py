"""A run folder belongs to one run, and to one process at a time.

A process takes the lock before it writes anything. Where the file system has no locks, the process that came last
holds the folder: each writes a mark of its own into `.lock`, and before each write looks whether it is still there.
"""

import errno
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dgad_tk.artifacts.runs import RunFolder
from dgad_tk.common import NOT_OFFERED, UserError, naming
from dgad_tk.config.training import TrainConfig

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_NO_LOCKS = {*NOT_OFFERED, errno.ENOLCK}
_OURS = (".lock", ".config-")
"""How the names begin of files that a process leaves if it is killed before there is a run."""


@dataclass(frozen=True)
class Held:
    """A run folder that this process holds.

    Attributes:
        folder: which one.
        mark: what it wrote into the folder's `.lock`.
        safe: the system's lock keeps other processes out; without it, `check` notices them.
    """

    folder: RunFolder
    mark: str
    safe: bool

    def check(self) -> None:
        """See that the folder is still there and still ours. To be called before each write.

        Raises:
            UserError: it is gone, or another process has taken it over.
        """
        try:
            found = (self.folder.path / ".lock").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            if self.folder.exists():
                return  # somebody cleared away what begins with a dot
            raise UserError(
                f"the run folder '{self.folder.path}' is gone", hint="leave it where it is until the run has ended"
            ) from None
        if found != self.mark:
            raise UserError(
                f"another process has taken over the run folder '{self.folder.path}'",
                hint="give each run a folder of its own: --out",
            )


def claimed(folder: RunFolder, config: TrainConfig, *, resume: bool) -> AbstractContextManager[Held]:
    """Make the run folder this run's own, and keep it to this process until it ends, however it ends.

    `check_claim` should come before: this makes the folder and its lock before it looks what the folder holds.

    Raises:
        UserError: it holds another run, a run of another config, or another process trains there.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    return locked(folder, lambda: begin(folder, config, resume=resume))


def begin(folder: RunFolder, config: TrainConfig, *, resume: bool) -> None:
    """Write the config of a new run into its folder, or see that the folder's run may go on.

    Raises:
        UserError: as `check_claim`.
    """
    check_claim(folder, config, resume=resume)
    if not folder.exists():
        config.save(folder.config)


def check_claim(folder: RunFolder, config: TrainConfig, *, resume: bool) -> None:
    """See that a run of `config` may begin or go on in a folder.

    Raises:
        UserError: it holds another run, or a run of another config.
    """
    blocking = next((path for path in [folder.path, *folder.path.parents] if path.exists() and not path.is_dir()), None)
    if blocking:
        raise UserError(
            f"the run folder '{folder.path}' cannot be made: '{blocking}' is a file", hint="choose another --out"
        )
    if not folder.exists():
        if resume:
            raise UserError(f"nothing to resume in '{folder.path}'", hint="start the run without --resume")
        if folder.path.exists() and any(not path.name.startswith(_OURS) for path in folder.path.iterdir()):
            raise UserError(f"'{folder.path}' is not empty and not a run folder", hint="choose another --out")
        return
    if not resume:
        raise UserError(f"'{folder.path}' already holds a run", hint="add --resume to go on, or choose another --out")
    if differences := config.differences(folder.read_config()):
        raise UserError(
            f"the run in '{folder.path}' has another config: " + "; ".join(differences),
            hint="resume with the settings it was started with, or start a new run",
        )


@contextmanager
def locked(folder: RunFolder, before: Callable[[], None] = lambda: None) -> Iterator[Held]:
    """Keep a run folder to this process.

    Args:
        before: called between taking the lock and writing the mark; if it raises, the mark of the last holder stays.

    Raises:
        UserError: another process trains there.
    """
    path = folder.path / ".lock"
    with path.open("a", encoding="utf-8") as file:  # not "w", which would wipe another's mark
        with naming(path):
            safe = _lock(file, folder.path)
        before()
        mark = f"process {os.getpid()} on {socket.gethostname()}, {uuid.uuid4().hex}\n"
        with naming(path):
            file.truncate(0)
            file.write(mark)
            file.flush()
        yield Held(folder, mark, safe)


def _lock(file: IO[str], folder: Path) -> bool:
    """Whether the system locked the file; False where it has no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        if error.errno not in _HELD:
            raise
        raise UserError(
            f"another process is training in '{folder}'", hint="wait for it, or choose another --out"
        ) from None
    return True
