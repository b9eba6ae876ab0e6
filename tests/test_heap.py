"""Memory that is freed and asked for again: the system's own count of pages tells whether it was kept."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no glibc")


def told(script: str) -> list[int]:
    """Numbers that a fresh process prints, after `faults()`: pages that passes with eight large tensors are given."""
    begin = """
        import resource, torch
        from dgad_tk.heap import kept
        torch.set_num_threads(1)

        def passes(count):
            for _ in range(count):
                held = [torch.ones(2**22) for _ in range(8)]
                held = None

        def faults():
            passes(2)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            passes(10)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    """
    source = textwrap.dedent(begin) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def test_pages_are_kept_inside() -> None:
    before, first, nested, still = told("""
        before = faults()
        with kept():
            first = faults()
            with kept():
                nested = faults()
            still = faults()
        print(before, first, nested, still)
    """)
    assert max(first, nested, still) < before / 3


def test_what_was_held_goes_back_at_the_end() -> None:
    """Resident pages after a search are not those of its peak, however it ended."""
    inside, after = told("""
        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize() >> 20

        try:
            with kept():
                with kept():
                    passes(4)
                inside = resident()
                raise KeyError
        except KeyError:
            print(inside, resident())
    """)
    assert inside - after > 100
