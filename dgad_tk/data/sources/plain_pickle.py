"""Reads a pickle of plain values and numpy arrays without importing or calling anything that it names.

Python's own `pickle` does it, restricted to lists of allowed instructions and names. This is its version written in
Python. The version in C is not safe even with `find_class`: it takes gigabytes for a large memo index (an instruction
of five bytes), and overflows its stack when it hashes a deeply nested key.
"""

import os
import pickle
import struct
from typing import Any, BinaryIO, ClassVar

LARGEST_BYTES = 2**28
"""Most bytes of a file; CIFAR's largest has 155 million. A hostile file takes a multiple of its size in memory."""

_NAMES = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}
_INSTRUCTIONS = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINSTRING SHORT_BINSTRING "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_LIST APPEND APPENDS SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL "
    "STACK_GLOBAL REDUCE BUILD"
)


class Call:
    """Stands for the result of calling an allowed name: the call's `arguments`, and the `state` of the result."""

    def __init__(self, *arguments: object) -> None:
        self.arguments, self.state = arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Values(dict[str, object]):
    """A dict whose keys are text. Hashing a nested tuple would recurse without limit."""

    def __setitem__(self, key: object, value: object) -> None:
        super().__setitem__(as_text(key), value)


def _empty_dict(machine: Any) -> None:
    machine.append(_Values())


class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar = {
        code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _INSTRUCTIONS.split())
    } | {pickle.EMPTY_DICT[0]: _empty_dict}

    def find_class(self, module: str, name: str) -> type[Call]:
        if (module, name) not in _NAMES:
            raise ValueError(f"it asks for {f'{module}.{name}'[:60]!r}, which images do not need; nothing was run")
        return Call


def read(file: BinaryIO) -> object:
    """The value in `file`, with text as keys and Python 2's strings as bytes; ValueError where it cannot be read so."""
    size = os.fstat(file.fileno()).st_size
    if size > LARGEST_BYTES:
        raise ValueError(f"{size:,} bytes are more than a file of CIFAR's has")
    try:
        return _Unpickler(file, encoding="bytes").load()
    except EOFError:
        raise ValueError("it ends too early") from None
    except (
        pickle.UnpicklingError, struct.error, LookupError, TypeError, AttributeError, OverflowError, MemoryError
    ) as error:  # fmt: skip
        raise ValueError(f"it is no sound pickle of plain values ({type(error).__name__})") from None


def as_bytes(value: object) -> bytes:
    """A string as bytes; ValueError for anything else. Python 3 writes bytes for Python 2 as a call of `encode`."""
    match value:
        case bytes():
            return value
        case Call(arguments=(str(characters), "latin1")):
            return characters.encode("latin-1")
    raise ValueError(f"a {type(value).__name__} where text belongs")


def as_text(value: object) -> str:
    """A string as text; ValueError for anything else."""
    return (value.encode() if isinstance(value, str) else as_bytes(value)).decode()
