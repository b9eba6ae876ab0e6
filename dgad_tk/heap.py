"""Memory that torch frees on a CPU, kept for its next call.

glibc returns large blocks to the system as soon as they are free, and the system clears every page of those it hands
out anew: a fifth to a third of a gradient step on a small network, whose feature maps are allocated and freed again in
every pass. ONNX Runtime has an arena of its own and torch's allocator for GPUs keeps what it has; for a CPU torch asks
glibc each time.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEEP = 2**30
_USUAL = 2**25
"""Bytes. The largest block that glibc comes to keep by its own rule, and the most that older versions accept."""
_depth = 0


@contextmanager
def kept() -> Iterator[None]:
    """Until the outermost `with` ends, what this process frees stays with it; then it goes back to the system.

    Does nothing where the C library is not glibc.
    """
    global _depth
    _depth += 1
    if _depth == 1:
        _set_thresholds(_KEEP)
    try:
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _set_thresholds(_USUAL)
            if (libc := _libc()) is not None:
                libc.malloc_trim(0)


def _set_thresholds(size: int) -> None:
    if (libc := _libc()) is not None:
        if not libc.mallopt(_MMAP_THRESHOLD, size):
            libc.mallopt(_MMAP_THRESHOLD, _USUAL)
        libc.mallopt(_TRIM_THRESHOLD, 2 * size - 1)  # an int


@cache
def _libc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
