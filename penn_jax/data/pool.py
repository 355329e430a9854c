"""One function over many cases, in several processes, with a progress bar."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from penn_jax.types import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")


@contextmanager
def processes(workers: int | None, jobs: int) -> Iterator[Executor | None]:
    """A pool of fresh processes: a fork would copy locks that other threads hold.

    Args:
        workers: how many; one for each CPU at hand if None.
        jobs: no more processes than these.

    Yields:
        The pool, None where one worker is enough: the caller's own process then does the work.
    """
    if workers is None:
        affinity = getattr(os, "sched_getaffinity", None)
        workers = len(affinity(0)) if affinity else os.cpu_count() or 1
    workers = min(workers, jobs)
    if workers <= 1:
        yield None
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_follow_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    # Ctrl-C reaches every process of a terminal; the parent alone should act on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent shuts nothing down: its workers would wait for work, or write, for ever."""
    if parent := parent_process():
        wait([parent.sentinel])
        os._exit(1)


def run(
    pool: Executor | None,
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    title: str,
    progress: bool,
) -> list[Result]:
    """The results in the order of the jobs.

    Args:
        pool: of ``processes``.
        function: a module's function or a ``partial`` of one.
        jobs: its arguments.
        title: what the bar is called.
        progress: show a bar on stderr, if that is a terminal.

    Raises:
        InputError: a process was killed, as systems do that run out of memory.
        Exception: the first that a job raised, in the order of the jobs.
    """
    results = pool.map(function, jobs) if pool else map(function, jobs)
    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (progress and console.is_terminal)) as bar:
        try:
            return list(bar.track(results, total=len(jobs)))
        except BrokenProcessPool as error:
            remedy = "free memory, or use fewer --workers"
            raise InputError(title, "a process was killed", "memory for all", remedy) from error
