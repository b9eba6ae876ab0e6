"""The plain values in a pickle, read without `pickle`: no name in it is ever looked up, no object of it is ever called.

The opcodes are listed in Python's `pickletools`. Here they make None, booleans, numbers, strings, lists, tuples, dicts
and arrays of bytes, whose names are compared with the few that numpy writes, and whatever else they ask for is refused.
Long strings stay in the file: what comes back says where they are, so that memory does not grow with the images.
"""

import codecs
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from dgad_tk.data.reading import exactly

LONG = 2**16
"""Bytes from which a string stays in the file."""
PIECE = 2**20

_NUMPY = {"numpy.core.multiarray", "numpy._core.multiarray"}
_MARK = object()


@dataclass(frozen=True)
class Extent:
    """A long string, where it is in the file.

    Attributes:
        start: its first byte.
        size: bytes of the file.
        encoded: it is UTF-8 of characters that stand for one byte each, as Python 3 writes bytes for Python 2.
    """

    start: int
    size: int
    encoded: bool = False

    def pieces(self, file: BinaryIO) -> Iterator[bytes]:
        """Its bytes, some at a time.

        Raises:
            ValueError: the file ends before it does, or it is not encoded as it should be.
        """
        file.seek(self.start)
        decoder = codecs.getincrementaldecoder("utf-8")()
        for done in range(0, self.size, PIECE):
            piece = exactly(file, min(PIECE, self.size - done))
            yield decoder.decode(piece).encode("latin-1") if self.encoded else piece


@dataclass
class Array:
    """A numpy array.

    Attributes:
        shape: as numpy's.
        kind: "u1" for bytes.
        fortran: the first index runs fastest.
        data: the bytes or where they are.
    """

    shape: tuple[int, ...] = ()
    kind: str = ""
    fortran: bool = False
    data: bytes | Extent = b""


@dataclass(frozen=True)
class _Name:
    """What would be imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass
class _Kind:
    """A numpy dtype."""

    name: str


_RECONSTRUCT = {_Name(module, "_reconstruct") for module in _NUMPY}
_NDARRAY, _DTYPE, _ENCODE = _Name("numpy", "ndarray"), _Name("numpy", "dtype"), _Name("_codecs", "encode")
_KNOWN = _RECONSTRUCT | {_NDARRAY, _DTYPE, _ENCODE}

_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False}
_INTEGERS = {b"K": "<B", b"M": "<H", b"J": "<i"}
# Format of the length; strings of Python 2, being bytes, among the bytes.
_BYTES = {b"U": "<B", b"T": "<i", b"C": "<B", b"B": "<I", b"\x8e": "<Q"}
_TEXTS = {b"X": "<I", b"\x8c": "<B", b"\x8d": "<Q"}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}


def read(file: BinaryIO) -> object:
    """The value pickled in `file`, of protocol 2 to 4; strings are bytes where Python 2 wrote them.

    Raises:
        ValueError: it is no such pickle, is damaged, or asks for anything but plain values and arrays of bytes.
    """
    try:
        return _Machine(file).run()
    except (IndexError, KeyError, TypeError, AttributeError, struct.error, OverflowError) as error:
        raise ValueError(f"it is no sound pickle ({type(error).__name__})") from None


@dataclass
class _Machine:
    """The stack machine whose instructions a pickle consists of."""

    file: BinaryIO
    stack: list[object] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)

    def run(self) -> object:
        if exactly(self.file, 1) != b"\x80" or exactly(self.file, 1)[0] not in (2, 3, 4):
            raise ValueError("it is no pickle of protocol 2, 3 or 4")
        while (code := exactly(self.file, 1)) != b".":
            self.step(code)
        (value,) = self.stack
        return value

    def step(self, code: bytes) -> None:
        """One instruction."""
        stack = self.stack
        match code:
            case _ if code in _INTEGERS:
                stack.append(self.number(_INTEGERS[code]))
            case b"q":
                self.memo[self.number("<B")] = stack[-1]
            case b"r":
                self.memo[self.number("<I")] = stack[-1]
            case b"\x94":
                self.memo[len(self.memo)] = stack[-1]
            case b"h":
                stack.append(self.memo[self.number("<B")])
            case b"j":
                stack.append(self.memo[self.number("<I")])
            case _ if code in _BYTES:
                stack.append(self.string(self.number(_BYTES[code])))
            case _ if code in _TEXTS:
                text = self.string(self.number(_TEXTS[code]))
                stack.append(Extent(text.start, text.size, True) if isinstance(text, Extent) else text.decode())
            case _ if code in _CONSTANTS:
                stack.append(_CONSTANTS[code])
            case b"(":
                stack.append(_MARK)
            case b"]":
                stack.append([])
            case b"}":
                stack.append({})
            case b")":
                stack.append(())
            case b"a":
                self.extend([stack.pop()])
            case b"e":
                self.extend(self.since_mark())
            case b"s":
                self.update([stack.pop(-2), stack.pop()])
            case b"u":
                self.update(self.since_mark())
            case b"t":
                stack.append(tuple(self.since_mark()))
            case _ if code in _TUPLES:
                n = _TUPLES[code]
                stack[-n:] = [tuple(stack[-n:])]
            case b"\x8a":
                stack.append(int.from_bytes(exactly(self.file, self.number("<B")), "little", signed=True))
            case b"G":
                stack.append(struct.unpack(">d", exactly(self.file, 8))[0])
            case b"c":
                module, name = (self.file.readline(256).decode("ascii").rstrip("\n") for _ in range(2))
                stack.append(self.known(module, name))
            case b"\x93":
                stack[-2:] = [self.known(stack[-2], stack[-1])]
            case b"R":
                arguments, callee = stack.pop(), stack.pop()
                stack.append(_made(callee, arguments))
            case b"b":
                state = stack.pop()
                _fill(stack[-1], state)
            case b"\x95":
                self.number("<Q")  # a frame's length, which only helps to read ahead
            case _:
                raise ValueError(f"its instruction {code!r} has no place in a file of images")

    def number(self, form: str) -> int:
        """An integer of struct's format `form`, not negative where it is a length."""
        return int(struct.unpack(form, exactly(self.file, struct.calcsize(form)))[0])

    def string(self, size: int) -> bytes | Extent:
        """The next `size` bytes, or where they are."""
        if not 0 <= size < 2**40:
            raise ValueError(f"a string of {size} bytes")
        if size < LONG:
            return exactly(self.file, size)
        start = self.file.tell()
        self.file.seek(start + size)  # past the end of a file that was cut; the next instruction fails then
        return Extent(start, size)

    def since_mark(self) -> list[object]:
        """What was put on the stack since the last mark, taken off again."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def extend(self, values: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target.extend(values)

    def update(self, pairs: list[object]) -> None:
        target = self.stack[-1]
        # Only plain keys: the hash of a tuple goes as deep as its nesting.
        if not isinstance(target, dict) or not all(isinstance(key, bytes | str | int) for key in pairs[::2]):
            raise TypeError
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def known(self, module: object, name: object) -> _Name:
        """A name that may stand in the file; it is a label to us, nothing is imported."""
        found = _Name(str(module), str(name))
        if found not in _KNOWN:
            raise ValueError(f"it asks for {str(found)[:60]!r}, which images do not need; nothing was run")
        return found


def _made(callee: object, arguments: object) -> object:
    """What the call of a known name stands for."""
    if not isinstance(callee, _Name) or not isinstance(arguments, tuple):
        raise TypeError
    if callee in _RECONSTRUCT:
        return Array()  # its shape and bytes follow as a state
    if callee == _DTYPE:
        return _Kind(str(_text(arguments[0])))
    if callee == _ENCODE and _text(arguments[1]) in ("latin1", "latin-1"):
        text = arguments[0]
        return text if isinstance(text, Extent) else text.encode("latin-1")
    raise ValueError(f"it calls {callee} where images do not need it; nothing was run")


def _fill(target: object, state: object) -> None:
    """The state of an array: version, shape, dtype, order, bytes. A dtype's own state matters to larger items only."""
    if isinstance(target, _Kind):
        return
    if not isinstance(target, Array) or not isinstance(state, tuple):
        raise TypeError
    _, shape, kind, fortran, data = state
    if not isinstance(kind, _Kind) or not isinstance(data, bytes | Extent) or not isinstance(shape, tuple):
        raise TypeError
    target.shape, target.kind, target.fortran, target.data = tuple(map(int, shape)), kind.name, bool(fortran), data


def _text(value: object) -> object:
    return value.decode("latin-1") if isinstance(value, bytes) else value
