"""Being asked to stop: SIGTERM of a scheduler, Ctrl-C of a person."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or Ctrl-C sets; a second signal acts as if we were not here.

    A signal that is ignored (Ctrl-C, by jobs that a script starts with &) stays ignored. Outside
    the main thread, where Python allows no handlers, the event is never set.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    found = {s: signal.getsignal(s) or signal.SIG_DFL for s in (signal.SIGINT, signal.SIGTERM)}
    before = {s: handler for s, handler in found.items() if handler != signal.SIG_IGN}

    def handle(number: int, frame: FrameType | None) -> None:
        asked.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield asked
    finally:
        restore()
