"""What the processes of one run do together: agree, share, wait for each other.

Every function is called by all processes, in the same order. With one process each is the
identity, and nothing is sent.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from penn_jax.config import Config, config_hash
from penn_jax.data.remote import Place
from penn_jax.remote_run import Work, at_work
from penn_jax.run import ModelCard, opened
from penn_jax.types import InputError

_LAG = 2
"""Steps until an answer is asked for: by then it is there, and no step has waited for it."""
_SEEN_WITHIN = 30.0
"""Seconds after which a file must show on all hosts that share a folder."""


def is_primary() -> bool:
    """Whether this is the process that writes: log, checkpoints, result."""
    return jax.process_index() == 0


def share(items: int) -> range:
    """The numbers of the items, of so many, that this process does."""
    return range(jax.process_index(), items, jax.process_count())


def gathered(array: np.ndarray) -> np.ndarray:
    """An array of each process along a new first axis, bit for bit."""
    if jax.process_count() == 1:
        return array[None]
    octets = np.frombuffer(array.tobytes(), np.uint8)  # jax would make 32-bit numbers of 64-bit
    rows = np.asarray(_over_all_devices(_same)(octets))
    of_process = [device.process_index for device in jax.devices()]
    firsts = [of_process.index(process) for process in range(jax.process_count())]
    return np.frombuffer(rows[firsts].tobytes(), array.dtype).reshape(-1, *array.shape)


@functools.cache
def _over_all_devices(reduce: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """A function of the rows of all devices, known to all; each process gives one of its own.

    Over all devices, as the training step: gloo makes the connections of each set of them anew,
    and waits half a minute for it at most.
    """
    mesh = Mesh(np.array(jax.devices()), ("device",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["device"], []))
    compiled = jax.jit(reduce, out_shardings=whole)

    def run(row: np.ndarray) -> jax.Array:
        rows = np.repeat(row[None], jax.local_device_count(), axis=0)
        return compiled(jax.make_array_from_process_local_data(split, rows))

    return run


def summed(number: int) -> int:
    """The sum of a number of each process, modulo 2⁶⁴."""
    return int(gathered(np.array(number % 2**64, np.uint64)).sum(dtype=np.uint64))


def wait_for_all() -> None:
    """Return when every process has come here, however long that takes."""
    gathered(np.zeros(1, np.uint8))


@contextlib.contextmanager
def primary_first() -> Iterator[None]:
    """Run a block in process 0, then in the others."""
    if not is_primary():
        wait_for_all()
    yield
    if is_primary():
        wait_for_all()


def _same(rows: jax.Array) -> jax.Array:
    return rows


def _largest(rows: jax.Array) -> jax.Array:
    return rows.max(axis=0)


class Agreement:
    """The seconds of process 0's clock, and a signal that came to any process.

    Processes that looked at clocks and signals of their own would end at different steps. Asked at
    each step, it answers for the step two before, so that none waits; with one process, at once.

    Args:
        seconds: answered before there is an answer.
    """

    def __init__(self, seconds: float):
        self._known = np.array([seconds, 0])
        self._asked: deque[jax.Array] = deque()

    def __call__(
        self, seconds: float, signal: int | None, wait: bool = False
    ) -> tuple[float, int | None]:
        """Tell this process's seconds and signal, and hear what is agreed on.

        Args:
            seconds: of this process's clock.
            signal: number of the one that came, or None.
            wait: for the answer of this very step.
        """
        if jax.process_count() == 1:
            return seconds, signal
        row = np.array([seconds if is_primary() else 0.0, signal or 0], np.float32)
        self._asked.append(_over_all_devices(_largest)(row))
        while len(self._asked) > (0 if wait else _LAG):
            self._known = np.asarray(self._asked.popleft())
        return float(self._known[0]), int(self._known[1]) or None


@contextlib.contextmanager
def at_work_by_all(out: Place, resume: bool) -> Iterator[Work]:
    """A local folder for a run as :func:`remote_run.at_work` gives it: to process 0 to write."""
    with contextlib.ExitStack() as until_the_end:
        with primary_first():  # it holds the run and clears up; the others copy what is left
            work = until_the_end.enter_context(at_work(out, resume, is_primary()))
        yield work
    wait_for_all()  # process 0 may have had more to publish


@contextlib.contextmanager
def opened_by_all(
    out: Path, config: Config, card: ModelCard, resume: bool, is_copy: bool = False
) -> Iterator[None]:
    """Hold a run directory as :func:`run.opened` does: process 0 for all.

    Args:
        out: the run directory, or where ``is_copy`` this process's copy of it.
        config: of the run.
        card: what prediction must know besides the config.
        resume: go on with what is there.
        is_copy: the processes have a folder each.

    Raises:
        InputError: as ``opened``; or a process does not see the folder, or has another config.
    """
    with opened(out, config, card, resume) if is_primary() else contextlib.nullcontext():
        if not is_copy:
            _check_shared(out)
        _check_same(config)
        yield
        wait_for_all()  # process 0 may have more to write


def _check_same(config: Config) -> None:
    """Check that all processes were given the same config."""
    hashes = gathered(np.frombuffer(bytes.fromhex(config_hash(config)), np.uint8))
    _check_all((hashes == hashes[0]).all(axis=1), "config", "has another config than process 0")


def _check_shared(out: Path) -> None:
    """Check that all processes see what process 0 writes into a folder."""
    if jax.process_count() == 1:
        return
    name = gathered(np.frombuffer(os.urandom(8), np.uint8))[0].tobytes().hex()
    mark = out / f".{name}.partial"
    with primary_first():
        if is_primary():
            mark.touch()
    sees = gathered(np.array(_appears(mark)))
    if is_primary():
        mark.unlink()
    _check_all(sees, out, "does not see what process 0 writes there")


def _check_all(fine: np.ndarray, source: object, wrong: str) -> None:
    if not fine.all():
        numbers = ", ".join(map(str, np.flatnonzero(~fine)))
        raise InputError(
            source,
            f"process {numbers} {wrong}",
            "one command for all, and a run directory that all hosts share",
            "correct the command, or choose a folder on a shared disk or in object storage",
        )


def _appears(path: Path) -> bool:
    """Whether a file is there: shared disks show new files late."""
    deadline = time.monotonic() + _SEEN_WITHIN
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
