"""The Typer app, and what becomes of errors: one line and a hint for the user's, a traceback for ours."""

import errno
import io
import os
import select
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TextIO

import typer

from cli.commands import attack, bench, compare, export, gate, inspect, list, report, train
from cli.completion import ASKED, answer_bash, complete_values
from cli.flags.training.groups import Grouped
from cli.flags.values import AsJson
from cli.printing.terminal import is_plain
from dgad_tk import __version__
from dgad_tk.common import GateError, UserError
from dgad_tk.cores import share_cores
from dgad_tk.strangers.names import check_utf8, shown

OK, FAILED_GATE, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 0, 1, 2, 3, 130
NOBODY_READS = 141
"""As a shell reports a program that wrote into a closed pipe: 128 and the number of SIGPIPE."""

QUICKSTART = (
    ("train",),
    ("export", "--format", "onnx"),
    ("attack", "--model", "student.onnx", "--suite", "full"),
)
"""The README's three commands."""

_REMEDIES = {
    errno.ENOSPC: "free some space and run the same command again",
    errno.EDQUOT: "free some space and run the same command again",
    errno.EFBIG: "files may not be so large here",
    errno.EACCES: "choose another folder, or ask for permission",
    errno.EPERM: "choose another folder, or ask for permission",
    errno.ENOENT: "see that nothing moves or deletes it, and run the same command again",
    errno.ELOOP: "a link leads back to itself; give the real path",
    errno.EIO: "the disk or the network in between fails; look at the system's log",
    errno.ESTALE: "the network share was lost; connect it again and run the same command again",
    errno.ETIMEDOUT: "the network share does not answer; run the same command again when it does",
    errno.EMFILE: "too many files are open; raise the limit: `ulimit -n 4096`",
    errno.ENFILE: "too many files are open on this machine; close other programs",
    errno.ENOMEM: "free some memory, or take a smaller --batch-size",
}
"""What helps against an error of the operating system, where its own words do not say so."""

_OURS = {errno.EPIPE, errno.EBADF, errno.EFAULT, errno.ENOTTY, errno.ESPIPE, errno.EINVAL, errno.ECHILD, errno.ESRCH}
"""Errors that are a program's mistakes if they name no file."""

app = typer.Typer(
    name="dgad",
    help="Train a compact classifier that resists attack, export it, and attack the exported file itself.\n\n"
    "dgad train; dgad export --format onnx; dgad attack --model student.onnx --suite full",
    epilog="Exit codes: 0 fine, 1 a gate or parity check failed, 2 bad usage or input, 3 a bug, 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dgad {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def quickstart(as_json: AsJson = False) -> None:
    """Train on the digits, export to ONNX, attack the file.

    With --json there is one line per command.
    """
    for command in QUICKSTART:
        command = (*command, "--json") if as_json else command
        print(f"$ dgad {shlex.join(command)}", file=sys.stderr, flush=True)
        if code := run(command):
            raise typer.Exit(code)


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "export": export.export,
    "attack": attack.attack,
    "compare": compare.compare,
    "gate": gate.gate,
    "report": report.report,
    "bench": bench.bench,
    "inspect": inspect.inspect,
    "list": list.list_table,
    "quickstart": quickstart,
}
for _name, _command in COMMANDS.items():
    complete_values(_name, _command)
    app.command(_name, cls=Grouped if _name == "train" else None)(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    command = ["dgad", *(sys.argv[1:] if arguments is None else arguments)]
    try:
        for argument in command:
            check_utf8(argument, "the argument")
        color = False if is_plain() else None
        code = app(args=arguments, prog_name="dgad", standalone_mode=False, obj=command, color=color)
        if code == INTERRUPTED:  # Typer makes an exit of Ctrl-C
            raise KeyboardInterrupt
        sys.stdout.flush()  # here, where it can still be said that nothing more fits
        return code if isinstance(code, int) else OK
    except SystemExit as leaving:  # Typer makes one of a closed pipe
        if isinstance(leaving.__context__, BrokenPipeError):
            return _unread(leaving.__context__)
        raise
    except UserError as error:
        return _say(error.message, error.hint)
    except GateError as error:
        _say(str(error), "")
        return FAILED_GATE
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())
            return OK
        message = error.format_message() + _given(error, sys.argv[1:] if arguments is None else arguments)
        path = getattr(getattr(error, "ctx", None), "command_path", "dgad")
        return _say(message, f"`{path} --help` shows what it takes")
    except OSError as error:
        return _unread(error) if error.errno == errno.EPIPE else _say_refused(error)
    except (KeyboardInterrupt, typer.Abort):
        if _rank() == "0":
            print("\ninterrupted", file=sys.stderr)
        if command[1:2] == ["attack"]:
            print("hint: the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
    except Exception:  # noqa: BLE001 - the last place that can tell the user what happened
        return _report()


def _unread(error: OSError) -> int:
    """The exit code after a closed pipe. If it is that of our output, there is nobody to tell."""
    return NOBODY_READS if any(map(_is_closed, (sys.__stdout__, sys.__stderr__))) else _say_refused(error)


def _is_closed(stream: TextIO | None) -> bool:
    """Whether nobody can read what is written to a stream."""
    if stream is None or not hasattr(select, "poll"):  # on Windows there is no asking
        return True
    asked = select.poll()
    asked.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))


def _say(message: str, hint: str) -> int:
    where = "" if _rank() == "0" else f"process {_rank()}: "
    print(shown(f"error: {where}{' '.join(message.split())}"), file=sys.stderr)
    if hint:
        print(shown(f"hint: {hint}"), file=sys.stderr)
    return BAD_INPUT


def _say_refused(error: OSError) -> int:
    """Say what the operating system refused. An error that names a path is about its state, and never a bug of ours."""
    path = error.filename2 or error.filename  # of a renaming, the new name
    named = isinstance(path, str | bytes | os.PathLike)
    if not named and (error.errno is None or error.errno in _OURS):
        return _report()
    reason = os.strerror(error.errno) if error.errno is not None else str(error)
    remedy = _REMEDIES.get(error.errno or 0, "choose another file or folder, or see what is wrong with this one")
    return _say(f"cannot use '{os.fsdecode(path)}': {reason}" if named else f"the system refused: {reason}", remedy)


def _rank() -> str:
    """Which of torchrun's processes this is. All but the first say nothing but errors."""
    return os.environ.get("RANK", "0")


def _report() -> int:
    traceback.print_exc()
    print("error: this is a bug in dgad; please report it with the lines above", file=sys.stderr)
    return INTERNAL_ERROR


def _given(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """The value of the flag that Typer complains of, which its message leaves out."""
    flags = getattr(getattr(error, "param", None), "opts", [])
    for flag, value in pairwise(arguments):
        if flag in flags:
            return f", got '{value}'"
    return ""


def main() -> None:
    """Entry point of the `dgad` script."""
    share_cores()
    if sys.stdout is None or sys.stderr is None:  # closed by who called us
        sys.stdout, sys.stderr = (each or open(os.devnull, "w") for each in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        if os.environ.get(ASKED) == "complete_bash":
            answer_bash(run)
            return
        code = run()
    except BrokenPipeError:
        code = NOBODY_READS
    except OSError:  # not even the error could be told
        code = BAD_INPUT
    sys.exit(_written(code))


def _written(code: int) -> int:
    """The exit code after the last of the output was written. If that is not possible, the rest is thrown away."""
    for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
        try:
            stream.flush()
        except OSError as error:
            code = code or (NOBODY_READS if isinstance(error, BrokenPipeError) else _say_refused(error))
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else Python tries again, and says so
    return code
