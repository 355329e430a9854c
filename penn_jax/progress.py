"""A progress line for long commands: rate, metric, time left; silent off a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


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
    ) as progress:
        yield Bar(progress, progress.add_task(title, total=1.0, note=""))


def warn(text: str) -> None:
    """Tell the user, in one line on stderr, of something that was wrong but could be helped."""
    print(f"penn: warning: {' '.join(text.split())}", file=sys.stderr, flush=True)


def say(text: str, enabled: bool = True) -> None:
    """Tell the user one line on stderr, unless a command is to be quiet."""
    if enabled:
        print(text, file=sys.stderr, flush=True)
