"""Signals that ask a run to end, kept until a step is done, so that it can save and then end.

SLURM before its time limit, preemptible machines before they go, and ``kill`` send SIGTERM; Ctrl-C
sends SIGINT. A second one of either ends the process at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Stop:
    """Whether the run was asked to end."""

    signal: int | None = None
    """Number of the first signal that came."""


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Collect SIGTERM and SIGINT while a block runs.

    Outside the main thread, where Python delivers no signals, none is collected.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def remember(number: int, frame: object) -> None:
        stop.signal = number
        for wanted, handler in before.items():
            signal.signal(wanted, handler)

    wanted = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in wanted}
    for number in wanted:
        # Where a signal is ignored, as SIGINT is in a shell's background jobs, it stays ignored.
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, remember)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
