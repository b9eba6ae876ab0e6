"""A real pseudo-terminal of a given width, for this process and for others."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

ESCAPE = "\x1b"
VARIABLES = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "TERM")
"""What decides about escape codes and widths."""


END = b"\x1eEND"
"""The last that is written."""


class Screen:
    """What was written onto a terminal."""

    text = ""

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


@contextmanager
def _opened(columns: int) -> Iterator[tuple[int, Screen]]:
    """The writing end of a terminal; the screen has its text once the block is left."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    screen = Screen()
    parts: list[bytes] = []

    def read() -> None:
        while not b"".join(parts[-2:]).endswith(END):
            parts.append(os.read(reader, 65536))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield writer, screen
    finally:
        os.write(writer, END)  # processes that a test leaves behind may hold the terminal open
        thread.join()
        os.close(writer)
        os.close(reader)
        screen.text = b"".join(parts).removesuffix(END).decode().replace("\r\n", "\n")


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return kept | {"TERM": "xterm-256color"} | more


@contextmanager
def on_terminal(columns: int, **environment: str) -> Iterator[Screen]:
    """Both of this process' streams on one terminal, with the variables that matter to it."""
    variables = patch.dict(os.environ, _environment(**environment), clear=True)
    with variables, _opened(columns) as (writer, screen), os.fdopen(os.dup(writer), "w") as stream:
        with patch.object(sys, "stdout", stream), patch.object(sys, "stderr", stream):
            yield screen
        stream.flush()


def run_on_terminal(arguments: Sequence[str], columns: int, folder: Path, **environment: str) -> tuple[int, Screen]:
    """Exit code and screen of `dgad` in a process of its own."""
    with _opened(columns) as (writer, screen):
        done = subprocess.run(
            [sys.executable, "-m", "cli", *arguments],
            stdin=writer,
            stdout=writer,
            stderr=writer,
            cwd=folder,
            env=_environment(PYTHONPATH=str(Path(__file__).parents[2]), **environment),
            check=False,
        )
    return done.returncode, screen
