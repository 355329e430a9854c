"""What commands tell: how far they are on stderr, what they end with on stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from penn_jax.config import json_text

_SPEED_OVER = 600.0
"""Seconds whose speed tells the time left: a slow run has minutes between its log points."""


class Outcome(NamedTuple):
    """What a command ends with."""

    result: Mapping[str, Any]
    """For a program: plain JSON types."""
    text: Sequence[RenderableType]
    """For a person: lines, and tables of rich."""


def tell(outcome: Outcome, as_json: bool) -> None:
    """Write what a command ends with to stdout: as one JSON object, or as text.

    Raises:
        OSError: stdout cannot be written.
    """
    try:
        if as_json:
            print(json_text({**outcome.result}), end="")
        else:
            for part in outcome.text:
                # rich would read brackets in a name as its own marks, and break a long path.
                (print if isinstance(part, str) else Console().print)(part)
        sys.stdout.flush()
    except OSError as error:
        # What is still to be written would fail once more, with a traceback, as Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "stdout") from error


class Bar:
    """One line that shows the share done, a note (rate, loss, Dice) and the time left."""

    def __init__(self, progress: Progress, task: TaskID):
        self._progress = progress
        self._task = task

    def update(self, share: float, note: str = "") -> None:
        """Show that ``share`` (0..1) of the work is done."""
        self._progress.update(self._task, completed=share, note=note)


@contextmanager
def bar(title: str, enabled: bool = True) -> Iterator[Bar]:
    """A progress bar on stderr, shown only where stderr is a terminal."""
    shown = enabled and sys.stderr.isatty()
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
        speed_estimate_period=_SPEED_OVER,
    ) as progress:
        yield Bar(progress, progress.add_task(title, total=1.0, note=""))


def warn(text: str) -> None:
    """Tell the user, in one line on stderr, of something that was wrong but could be helped."""
    print(f"penn: warning: {' '.join(text.split())}", file=sys.stderr, flush=True)


def say(text: str, enabled: bool = True) -> None:
    """Tell the user one line on stderr, unless a command is to be quiet."""
    if enabled:
        print(text, file=sys.stderr, flush=True)
