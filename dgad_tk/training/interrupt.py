"""Ctrl-C and SIGTERM, answered between two steps: first the run is saved, then it ends."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked the run to end."""

    def __init__(self, on_asked: Callable[[], None]) -> None:
        self.asked, self._on_asked = False, on_asked

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. A second signal does not wait for the end of the step."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._on_asked()


@contextmanager
def stop_requests(on_asked: Callable[[], None] = lambda: None) -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM instead of ending the process. In other threads than the main one nothing is noted.

    Args:
        on_asked: called in the signal handler, the first time.
    """
    request = StopRequest(on_asked)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
