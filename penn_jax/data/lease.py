"""One writer at a time of a folder in object storage, where the system holds no locks.

The object ``.lock`` belongs to whoever put it. Its owner puts it anew every few seconds; one that
has not changed for a while is a dead process's and may be taken over. Both are done on condition
that the object is the one last seen, so that of two processes exactly one succeeds, and no clocks
are compared. Before a writer puts what counts it makes sure that the object is still its own: one
that was cut off from the network and given up for dead writes nothing more.
"""

from __future__ import annotations

import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from penn_jax.config import json_text
from penn_jax.data.remote import Remote, Tell
from penn_jax.types import BusyError, InputError

LOCK = ".lock"

RENEWED_EVERY = 10.0
"""Seconds."""
DEAD_AFTER = 45.0
"""Seconds without a change: four times the owner must have failed."""


class Lease:
    """The right to write a folder, for as long as :func:`held` lasts.

    Args:
        folder: to be written.
        tell: told where another's lease must be waited for.

    Raises:
        BusyError: another process is writing the folder.
    """

    def __init__(self, folder: Remote, tell: Tell):
        self._folder, self._lock = folder, folder / LOCK
        self._content = json_text(
            {"host": platform.node(), "pid": os.getpid(), "key": secrets.token_hex(8)}
        ).encode()
        self._renewing, self._lost = threading.Lock(), False
        self._mine = self._unowned(tell)
        self.renew()

    def _unowned(self, tell: Tell) -> bytes:
        """The generation of the lock when it belongs to nobody."""
        content, seen = self._lock.look()
        if content is None:
            return seen
        tell(
            f"{self._folder}: another process was writing it; "
            f"it is gone if it gives no sign within {DEAD_AFTER:.0f} s"
        )
        given_up = time.monotonic() + DEAD_AFTER
        while time.monotonic() < given_up:
            time.sleep(min(1.0, RENEWED_EVERY / 2))
            content, now = self._lock.look()
            if content is None:
                return now
            if now != seen:
                raise self._busy("another process is writing it")
        return seen

    def check(self) -> None:
        """Make sure that the folder is still this process's to write, and for a while longer.

        Raises:
            BusyError: another process has taken it over.
            InputError: the service is out of reach.
        """
        # Not each time: a service takes one put a second of one object.
        if self._lost or time.monotonic() - self._renewed > 2 * RENEWED_EVERY:
            self.renew()

    def renew(self) -> None:
        """Give a sign of life.

        Raises:
            BusyError: another process has taken the folder over.
            InputError: the service is out of reach.
        """
        with self._renewing:
            asked = time.monotonic()
            renewed = self._lock.put_if(self._mine, self._content)
            if renewed is None:
                # An answer that was lost on its way was asked for again, and then refused.
                content, renewed = self._lock.look()
                self._lost = content != self._content
                if self._lost:
                    raise self._busy("another process has taken it over")
            self._mine, self._renewed = renewed, asked

    def release(self) -> None:
        """Give the folder back, if it is still this process's."""
        with self._renewing:
            self._lock.put_if(self._mine, None)

    def _busy(self, wrong: str) -> BusyError:
        return BusyError(self._folder, wrong, "one process at a time", "wait for it to end")


@contextmanager
def held(folder: Remote, tell: Tell) -> Iterator[Lease]:
    """Hold the right to write a folder until the block ends.

    Raises:
        BusyError: another process is writing the folder.
    """
    lease, ended = Lease(folder, tell), threading.Event()

    def keep() -> None:
        while not ended.wait(RENEWED_EVERY):
            # Out of reach for now, or lost: the check before a write tells.
            with suppress(InputError):
                lease.renew()

    # A daemon: the process must be able to end while the service gives no answer.
    keeper = threading.Thread(target=keep, name="lease", daemon=True)
    keeper.start()
    try:
        yield lease
    finally:
        ended.set()
        with suppress(InputError):  # it is given up for dead soon
            lease.release()
