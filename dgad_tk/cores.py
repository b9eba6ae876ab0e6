"""How many cores this process may use, and how its threads wait for one another. It imports no torch.

Torch computes an operator in as many threads as there are cores, and then waits for the slowest of them. A thread that
spins while it waits takes a core from those that still compute, if other programs want the cores too. libgomp, torch's
OpenMP on Linux, spins for milliseconds before it sleeps. It reads its settings when it is loaded: `share_cores` is
best called before torch is imported.
"""

import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from math import floor
from pathlib import Path

from dgad_tk.quota import core_quota
from dgad_tk.spinning import watch

SPINS, WAITING, THREADS = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"
SPIN_COUNT = 10_000
"""Rounds of libgomp's waiting loop before a thread sleeps; its own default is 300,000. With fewer, threads sleep
between two small operators, which costs time on an idle machine; with more, a busy one loses it."""
ROOT = Path("/")
_SIBLINGS = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"

_defaults: dict[str, str] = {}
"""Variables that were set here and not by the user, and their values."""


def share_cores(environment: MutableMapping[str, str] = os.environ, root: Path = ROOT) -> None:
    """Let torch take no more threads than the quota has cores for, and let threads that wait soon sleep.

    Variables that the user has set stay as they are. Where torch is loaded already, it is too late for the number of
    threads, and they spin less only while other programs want the cores.

    Args:
        environment: of this process.
        root: of the file system that says what the process may use.
    """
    left_to_us = WAITING not in environment and SPINS not in environment
    if left_to_us:
        watch()
    if "torch" in sys.modules:
        return
    if left_to_us:
        set_default(SPINS, str(SPIN_COUNT), environment)
    threads = usable_cores(root)
    if threads < physical_cores(root):  # torch's own choice, which knows of no quota
        set_default(THREADS, str(threads), environment)


def set_default(name: str, value: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set a variable that the user has not set; a later default replaces an earlier one."""
    if name not in environment or environment[name] == _defaults.get(name):
        environment[name] = _defaults[name] = value


@contextmanager
def users_own(environment: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Processes that start here are given the user's variables without our defaults."""
    taken = {name: value for name, value in _defaults.items() if environment.get(name) == value}
    for name in taken:
        del environment[name]
    try:
        yield
    finally:
        environment.update(taken)


def usable_cores(root: Path = ROOT) -> int:
    """Threads that can run at once: cores that the process may run on, or fewer where a quota gives less time.

    A quota of 1.5 cores is worth two threads, which are stopped for a quarter of the time; one of 1.4 cores is worth
    one.
    """
    quota = core_quota(root)
    return allowed_cores() if quota is None else max(1, min(allowed_cores(), floor(quota + 0.5)))


def allowed_cores() -> int:
    """Cores that the process may run on, by its affinity; a quota of time is not considered."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def physical_cores(root: Path = ROOT) -> int:
    """The same, where two hardware threads of one core count once, if the system says which those are."""
    if not hasattr(os, "sched_getaffinity"):
        return allowed_cores()
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = str(cpu)
        with suppress(OSError):  # not every system says
            siblings = (root / _SIBLINGS.format(cpu)).read_text(encoding="ascii", errors="replace").strip()
        cores.add(siblings)
    return len(cores)
