"""Threads that wait for one another spin less while other programs want the cores. It imports no torch itself.

On an idle machine a thread that spins is there at once when the next operator begins; on a busy one it takes the core
from the thread that it waits for. libgomp, torch's OpenMP on Linux, reads how long to spin once, when it is loaded. But
it looks at each wait whether it has more threads than there are cores, and then lets them spin 100 times at most
(https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html). So a second team of threads, which sleeps, is the
brake: it is made when this process' threads begin to wait for a core, and dismissed when they no longer do. What is
computed stays the same to the last bit, since each operator is divided among as many threads as before.
"""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread, main_thread

PERIOD = 0.1
"""Seconds from one look to the next."""
CROWDED, FREE = 0.15, 0.05
"""Seconds in each second that all threads together waited for a core: the brake is put on above the first, and taken
off when it has been below the second for CALM seconds."""
CALM = 1.0
_GRAIN = 2**15
"""Values that torch gives a thread at least; of fewer it makes no team."""
TASKS = Path("/proc/self/task")


def watch(tasks: Path = TASKS) -> Thread | None:
    """Begin to look after the threads of this process, until it ends; None where that cannot be done."""
    if waited(tasks) is None:
        return None
    watching = Thread(target=_look, args=(tasks,), name="spinning", daemon=True)
    with suppress(RuntimeError):  # no more threads may be started here
        watching.start()
        return watching
    return None


def waited(tasks: Path = TASKS) -> float | None:
    """Seconds that the threads which run now have waited for a core since they began; None where it is not known."""
    found = None
    with suppress(OSError):
        for task in tasks.iterdir():
            with suppress(OSError, IndexError, ValueError):  # a thread that has just ended
                found = (found or 0.0) + int((task / "schedstat").read_text().split()[1]) / 1e9
    return found


def _look(tasks: Path) -> None:
    brake, before, begun = Brake(), waited(tasks) or 0.0, time.monotonic()
    while True:
        time.sleep(PERIOD)
        torch = sys.modules.get("torch")
        now, moment = waited(tasks) or 0.0, time.monotonic()
        share, before, begun = max(0.0, now - before) / (moment - begun), now, moment
        # Not while it is being imported, in another thread.
        if torch is not None and not getattr(torch.__spec__, "_initializing", False):
            brake.look(share, moment)


class Brake:
    """A second team while there is a crowd.

    Args:
        make: makes a team, and returns what dismisses it.
    """

    def __init__(self, make: Callable[[], Callable[[], None]] | None = None) -> None:
        self._make, self._crowded = make or second_team, 0.0
        self._dismiss: Callable[[], None] | None = None

    @property
    def on(self) -> bool:
        return self._dismiss is not None

    def look(self, share: float, moment: float) -> None:
        """Put the brake on or take it off.

        Args:
            share: seconds in each second that threads waited for a core.
            moment: now, in seconds.
        """
        if share > FREE:
            self._crowded = moment
        if share > CROWDED and self._dismiss is None:
            self._dismiss = self._make()
        elif self._dismiss is not None and moment - self._crowded > CALM:
            self._dismiss()
            self._dismiss = None


def second_team() -> Callable[[], None]:
    """Have OpenMP make another team, as large as torch's, which sleeps; call the result to dismiss it."""
    over = Event()

    def exist() -> None:
        if not main_thread().is_alive():
            return
        import torch

        torch.zeros(_GRAIN * torch.get_num_threads()).add_(1)
        while not over.wait(PERIOD) and main_thread().is_alive():
            pass  # a team lasts as long as the thread that it belongs to

    with suppress(RuntimeError):  # no more threads may be started here, or the process is about to end
        # Python waits for it at the end of the process: one that is stopped inside torch aborts the whole process.
        Thread(target=exist, name="second team", daemon=False).start()
    return over.set
