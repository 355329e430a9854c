"""Shapes, records and the one error type that every part of the project shares.

Shape letters: ``B`` batch, ``F`` frames (the slices of a 2-D case, one for a 3-D case),
``*spatial`` the two or three axes a network sees, ``C`` channels, ``K`` classes.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

Frames = Float32[np.ndarray, "F *spatial C"]
"""A prepared image: canonical orientation, slice axis first, channels last."""

FrameLabels = UInt8[np.ndarray, "F *spatial"]
"""The labels of a prepared case: 0 is background, 255 is ignored by loss and metrics."""

Mask = Bool[np.ndarray, "*spatial"]
Affine = Float32[np.ndarray, "4 4"]

IGNORE_LABEL = 255
"""Voxels of this label take no part in the loss, the metrics or the sampling."""


class Batch(TypedDict):
    """What the loader yields and the training step takes."""

    image: Float32[np.ndarray, "B *size C"]
    label: UInt8[np.ndarray, "B *size"]
    index: Int64[np.ndarray, " B"]
    """Global sample number: with the seed it decides every random choice made for a sample."""
    place: Float64[np.ndarray, "B m"]
    """Case number, frame, centre and matrix of the patch; for logs, not for the network."""


_LONGEST = 1000
"""Characters told of what is wrong: a file may hold a value of any length."""


class InputError(Exception):
    """A mistake in what the user gave, told in one line.

    Args:
        source: the file, folder or option at fault.
        wrong: what was found there.
        expected: what would have been right.
        remedy: what the user can do.
    """

    def __init__(self, source: object, wrong: str, expected: str, remedy: str):
        self.source, self.wrong, self.expected, self.remedy = source, wrong, expected, remedy
        short = wrong if len(wrong) <= _LONGEST else f"{wrong[:_LONGEST]}…"
        line = f"{source}: {short}, expected {expected}; {remedy}"
        # A line break in a file name or a JSON key must not make two lines of it.
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))

    def __reduce__(self) -> tuple[type[InputError], tuple[object, str, str, str]]:
        # Exceptions are pickled by their message alone; worker processes raise this one too.
        return type(self), (self.source, self.wrong, self.expected, self.remedy)


class BusyError(InputError):
    """Another process holds what this one would write."""


class DivergedError(Exception):
    """Too many steps in a row had a gradient that is not finite."""


class LostError(Exception):
    """Another process of the run is gone, and nothing can be computed without it."""


class StoppedError(Exception):
    """A signal stopped a run between two steps; a checkpoint of the last one is written.

    Args:
        out: the run directory.
        step: steps done.
        signal: number of the signal.
    """

    def __init__(self, out: object, step: int, signal: int):
        self.signal = signal
        super().__init__(f"{out}: stopped by a signal at step {step}, saved; go on with --resume")
