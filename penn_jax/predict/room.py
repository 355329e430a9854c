"""Room for a value of every voxel of a scan: on disk, for it may exceed the memory."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float32


@contextmanager
def room(
    shape: Sequence[int], folder: Path, wanted: bool = True
) -> Iterator[Float32[np.ndarray, "X Y Z *K"] | None]:
    """An array in a file without a name, which is gone at the end.

    Args:
        shape: of the array.
        folder: on the disk to use.
        wanted: False gives None.

    Raises:
        OSError: the disk has no room.
    """
    if not wanted:
        yield None
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            # A full disk would end a process that writes to a mapped file with holes, unheard.
            try:
                os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(folder)) from error
        # In the order of a NIfTI file: the first axis fastest.
        yield np.memmap(file, np.float32, "w+", shape=tuple(shape), order="F")
