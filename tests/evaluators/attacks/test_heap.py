"""Memory that is freed and asked for again: what glibc is told of it. Pages are the kernel's to count, and are not."""

import ctypes
import sys

import pytest

from evaluators.attacks import native
from evaluators.attacks.native import kept

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of malloc.h
KEEP, USUAL = 2**30, 2**25

Call = tuple[str, int, int]
INSIDE: list[Call] = [("mallopt", MMAP_THRESHOLD, KEEP), ("mallopt", TRIM_THRESHOLD, 2 * KEEP - 1)]
AFTER: list[Call] = [
    ("mallopt", MMAP_THRESHOLD, USUAL),
    ("mallopt", TRIM_THRESHOLD, 2 * USUAL - 1),
    ("malloc_trim", 0, 0),
]


class Glibc:
    """Stands in for the C library: keeps what it is told, and takes thresholds of mmap up to `most`."""

    def __init__(self, most: int = 2**40) -> None:
        self.most, self.calls = most, list[Call]()

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append(("mallopt", parameter, value))
        return int(parameter != MMAP_THRESHOLD or value <= self.most)

    def malloc_trim(self, pad: int) -> int:
        self.calls.append(("malloc_trim", pad, 0))
        return 1


def use(libc: Glibc | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_libc", lambda: libc)


def test_blocks_are_kept_until_the_outermost_end(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = Glibc()
    use(libc, monkeypatch)
    with kept():
        assert libc.calls == INSIDE
        with kept():
            pass
        assert libc.calls == INSIDE
    assert libc.calls == INSIDE + AFTER


def test_what_was_held_goes_back_however_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = Glibc()
    use(libc, monkeypatch)
    with pytest.raises(KeyError), kept(), kept():
        raise KeyError
    assert libc.calls == INSIDE + AFTER
    with kept():
        assert libc.calls == INSIDE + AFTER + INSIDE


def test_an_older_glibc_keeps_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no threshold of mmap above 32 MiB, and says so by 0."""
    libc = Glibc(most=USUAL)
    use(libc, monkeypatch)
    with kept():
        assert libc.calls == [INSIDE[0], ("mallopt", MMAP_THRESHOLD, USUAL), INSIDE[1]]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    use(None, monkeypatch)
    with kept():
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no glibc")
def test_the_real_one_takes_it() -> None:
    """Its calls return 1 where a parameter is known and its value taken."""
    libc = native._libc()
    if libc is None:  # musl
        assert not hasattr(ctypes.CDLL(None), "mallopt")
        return
    assert libc.mallopt(TRIM_THRESHOLD, 2 * USUAL - 1) == 1
    assert libc.mallopt(MMAP_THRESHOLD, USUAL) == 1
    with kept():
        pass
