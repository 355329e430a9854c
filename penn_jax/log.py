"""The log of a run: ``metrics.jsonl``, one line a log point, and the same for TensorBoard."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any


class Log:
    """``metrics.jsonl`` and TensorBoard events of a run.

    Args:
        out: the run directory.
        step: lines past this step are dropped: a resumed run writes them again.
    """

    def __init__(self, out: Path, step: int):
        # Not SummaryWriter: it writes in a thread, and where the disk is full waits for ever.
        with _torch_hidden():
            from tensorboardX.event_file_writer import EventsWriter

        event_pb2 = import_module("tensorboardX.proto.event_pb2")  # made by protobuf: no types

        self._path = out / "metrics.jsonl"
        if self._path.exists():
            _cut(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")
        self._events, self._event = EventsWriter(str(out / "events")), event_pb2.Event
        # A viewer drops what a run that was killed wrote from this step on.
        purge = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._events.write_event(self._event(step=step + 1, file_version="brain.Event:2"))
        self._events.write_event(self._event(step=step + 1, session_log=purge))

    def write(self, point: Mapping[str, Any]) -> None:
        """Append one log point; its ``step`` is the TensorBoard step, NaN and Inf become null.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        from tensorboardX.summary import scalar

        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in point.items()
        }
        try:
            self._file.write(json.dumps(finite, allow_nan=False) + "\n")
            self._file.flush()
            for name, value in finite.items():
                if isinstance(value, float) and name != "seconds":
                    summary = scalar(name, value)
                    self._events.write_event(
                        self._event(step=point["step"], wall_time=time.time(), summary=summary)
                    )
            self._events.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def sync(self) -> None:
        """Wait until the lines are on the disk: those before a checkpoint must outlive it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write what is buffered and close the files."""
        try:
            self._file.close()
        finally:
            self._events.close()


@contextmanager
def _torch_hidden() -> Iterator[None]:
    """tensorboardX imports PyTorch where it is installed: seconds and memory for no scalar."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        yield
    finally:
        del sys.modules["torch"]


class Silence:
    """The log of a process that keeps none, because another one does."""

    def write(self, point: Mapping[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _cut(path: Path, step: int) -> None:
    """Drop the lines past a step."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) == len(lines):
        return
    temporary = path.with_suffix(".partial")
    try:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off by a kill
