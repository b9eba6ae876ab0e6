"""Ctrl-C and SIGTERM, answered between two steps: first the run is saved, then it ends."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked the run to end."""

    asked = False


@contextmanager
def stop_requests(on_asked: Callable[[], None]) -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM instead of ending the process. In other threads than the main one nothing is noted.

    Args:
        on_asked: called in the signal handler, the first time. The second time the handler raises KeyboardInterrupt.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True
        on_asked()

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
