"""CIFAR's files as their authors wrote them, and in other forms."""

import struct

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


NAMES = {"cifar10": [f"kind-{9 - n}" for n in range(10)], "cifar100": [f"fine_{99 - n}" for n in range(100)]}


FILES = {
    "cifar10": [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"],
    "cifar100": ["train", "test"],
}


def python2(value: object) -> bytes:
    """`value` in the opcodes that Python 2's cPickle wrote the official files with, in protocol 2."""

    def body(value: object) -> bytes:
        match value:
            case None:
                return b"N"
            case bool():
                return b"\x88" if value else b"\x89"
            case int():
                return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
            case bytes() if len(value) < 256:
                return b"U" + bytes([len(value)]) + value + b"q\x01"
            case bytes():
                return b"T" + struct.pack("<i", len(value)) + value + b"r" + struct.pack("<I", 300)
            case tuple():
                return b"(" + b"".join(map(body, value)) + b"t"
            case list():
                return b"]q\x05(" + b"".join(map(body, value)) + b"e"
            case dict():
                return b"}(" + b"".join(body(key) + body(item) for key, item in value.items()) + b"u"
            case np.ndarray():
                dtype = b"cnumpy\ndtype\n" + body((b"u1", 0, 1)) + b"R"
                dtype += body((3, b"|", None, None, None, -1, -1, 0)) + b"b"
                state = b"(" + body(1) + body(value.shape) + dtype + body(False) + body(value.tobytes()) + b"t"
                made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + body((0,)) + body(b"b") + b"tR"
                return made + state + b"b"
        raise AssertionError(value)

    return b"\x80\x02" + body(value) + b"."


def contents(name: str, n: int = 30) -> dict[str, tuple[Pixels, list[int]]]:
    rng = np.random.default_rng(0)
    classes = len(NAMES[name])
    return {
        file: (rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, classes, n).tolist())
        for file in FILES[name]
    }
