"""The terminal: whether it takes escape codes, how wide it is, and tables and lines that fit it.

A table that is too wide becomes narrower in this order: shorter headings; names on the left over several lines, and
long headings on the right; then the columns that are left over follow below, with the names once more. No figure is
cut and none is left out.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import wraps
from typing import ParamSpec, TextIO, TypeVar

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from dgad_tk.strangers.names import shown

P = ParamSpec("P")
R = TypeVar("R")

GAP = 2
"""Spaces between two columns."""
NARROW = 10
"""Columns that a folded name keeps at least."""

_CUTS = re.compile(r"(?<=[:/_ .-])(?<!\d[:/_ .-](?=\d))|(?=@)")
"""Where a name may be folded: after a separator, but not within a number such as 8/255."""

Heading = str | tuple[str, str]
"""Of a column; where there are two, the second is for narrow terminals."""


def console(stream: TextIO) -> Console:
    """A console that writes to `stream`, in colour where rich finds colour wanted and NO_COLOR does not forbid it.

    rich goes by the stream, FORCE_COLOR and TTY_COMPATIBLE. With NO_COLOR it would still print bold text;
    here it prints no escape code at all.
    """
    return Console(file=stream, color_system=None if is_plain() else "auto", width=columns(stream), highlight=False)


def is_plain() -> bool:
    """Whether escape codes are unwelcome on any terminal: NO_COLOR is set, or TERM names a terminal without."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def is_live(stream: TextIO) -> bool:
    """Whether lines on `stream` may be drawn anew: it is a terminal, and escape codes are welcome."""
    return stream.isatty() and not is_plain()


def columns(stream: TextIO) -> int | None:
    """How many columns the terminal behind `stream` has; None if it is none, where nothing needs to fit.

    COLUMNS wins over what the terminal says. 80 where neither says anything.
    """
    if not stream.isatty():
        return None
    wanted = os.environ.get("COLUMNS", "")
    if wanted.isascii() and wanted.isdigit() and int(wanted):
        return int(wanted)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def aside(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, with stderr for what is printed in it: a network of the user's own may print, which is no answer."""

    @wraps(function)
    def quiet(*values: P.args, **named: P.kwargs) -> R:
        with redirect_stdout(sys.stderr):
            return function(*values, **named)

    return quiet


def say(text: str, *, indent: int = 2) -> None:
    """Print a line. On a terminal that is narrower it goes on in the next ones, `indent` columns to the right.

    It breaks at spaces only, so that paths and commands stay whole.
    """
    limit = columns(sys.stdout)
    print("\n".join(wrapped(shown(text), limit, indent)))


def wrapped(text: str, limit: int | None, indent: int) -> list[str]:
    """The lines of `text`, broken at spaces to at most `limit` columns; before all but the first, `indent` spaces."""
    if limit is None or cell_len(text) <= limit:
        return [text]
    lines = [""]
    for word in re.findall(r"^ *\S+|\S+", text):
        if lines[-1].strip() and cell_len(lines[-1]) + 1 + cell_len(word) > limit:
            lines.append(" " * indent + word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return lines


def fits(names: Sequence[Heading], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a table fits onto the terminal as it is, or there is none."""
    limit = columns(sys.stdout)
    return limit is None or _total(_widths([_long(name) for name in names], rows)) <= limit


def plain_table(names: Sequence[Heading], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print rows under `names`, the first `left` columns flush left and the others right.

    Where there is no terminal, each row is one line, however long.
    """
    out, limit = console(sys.stdout), columns(sys.stdout)
    cells = [[shown(cell) for cell in row] for row in rows]
    heads: list[Heading] = [
        shown(name) if isinstance(name, str) else name for name in names
    ]  # ours, where there are two
    for number, (head, body) in enumerate(_laid_out(heads, cells, left, limit)):
        if number:
            print()
        for line in head:
            out.print(Text(line, style="bold"), soft_wrap=True)
        for line in body:
            print(line)


def _laid_out(
    names: Sequence[Heading], rows: list[list[str]], left: int, limit: int | None
) -> Iterator[tuple[list[str], list[str]]]:
    """The lines of the heading and of the rows, table by table: one, or several that are narrow enough."""
    heads = [_long(name) for name in names]
    if limit is None or _total(_widths(heads, rows)) <= limit:
        yield _lines(heads, rows, _widths(heads, rows), left)
        return
    heads = [name if isinstance(name, str) else name[1] for name in names]
    full = _widths(heads, rows)
    least = [min(width, NARROW) for width in full[:left]]
    least += [max([*(cell_len(row[at]) for row in rows), min(full[at], NARROW)]) for at in range(left, len(heads))]
    blocks: list[list[int]] = [[]]
    for at in range(left, len(heads)):
        if blocks[-1] and _total([*least[:left], *(least[each] for each in [*blocks[-1], at])]) > limit:
            blocks.append([])
        blocks[-1].append(at)
    for block in blocks:
        chosen = [*range(left), *block]
        told = [row for row in rows if block is blocks[0] or any(row[at] for at in block)]
        widths = _shrunk([full[at] for at in chosen], [least[at] for at in chosen], limit)
        part = [[row[at] for at in chosen] for row in told]
        if widths[0] < full[0]:  # a name that takes several lines stands at the first of its rows
            part = [[*([""] if at and row[0] == part[at - 1][0] else row[:1]), *row[1:]] for at, row in enumerate(part)]
        yield _lines([heads[at] for at in chosen], part, widths, left)


def _long(name: Heading) -> str:
    return name if isinstance(name, str) else name[0]


def _widths(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(heads, *rows, strict=True)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _shrunk(widths: list[int], least: list[int], limit: int) -> list[int]:
    """The widths, the widest taken from first until all fit or none can give more."""
    widths = list(widths)
    while _total(widths) > limit:
        spare = [at for at, width in enumerate(widths) if width > least[at]]
        if not spare:
            break
        widths[max(spare, key=lambda at: widths[at])] -= 1
    return widths


def _lines(heads: list[str], rows: list[list[str]], widths: list[int], left: int) -> tuple[list[str], list[str]]:
    def line(cells: list[str]) -> Iterator[str]:
        folded = [_folded(cell, width) for cell, width in zip(cells, widths, strict=True)]
        for number in range(max(map(len, folded))):
            parts = [each[number] if number < len(each) else "" for each in folded]
            padding = [" " * (width - cell_len(part)) for part, width in zip(parts, widths, strict=True)]
            pairs = zip(parts, padding, strict=True)
            aligned = [part + pad if at < left else pad + part for at, (part, pad) in enumerate(pairs)]
            yield (" " * GAP).join(aligned).rstrip()

    return list(line(heads)), [each for row in rows for each in line(row)]


def _folded(text: str, width: int) -> list[str]:
    """The text in pieces of at most `width` columns, broken after separators where that is possible."""
    if cell_len(text) <= width:
        return [text]
    lines = [""]
    for piece in _CUTS.split(text):
        if cell_len(lines[-1] + piece.rstrip()) <= width:
            lines[-1] += piece
            continue
        head, *more = chop_cells(piece, width)
        lines += [head, *more]
    return [line.strip() for line in lines if line.strip()]
