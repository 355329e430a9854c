"""The log of a run: ``metrics.jsonl``, one line a log point, and the same for TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Log:
    """``metrics.jsonl`` and TensorBoard events of a run.

    Args:
        out: the run directory.
        step: lines past this step are dropped: a resumed run writes them again.
    """

    def __init__(self, out: Path, step: int):
        from tensorboardX import SummaryWriter

        path = out / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            temporary = path.with_suffix(".partial")
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(out), purge_step=step + 1 if step else None)

    def write(self, point: Mapping[str, Any]) -> None:
        """Append one log point; its ``step`` is the TensorBoard step, NaN and Inf become null."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in point.items()
        }
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in finite.items():
            if isinstance(value, float) and name != "seconds":
                self._events.add_scalar(name, value, point["step"])

    def close(self) -> None:
        """Write what is buffered and close the files."""
        self._file.close()
        self._events.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off by a kill
