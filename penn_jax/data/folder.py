"""A folder that appears whole or not at all, made by one process at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from penn_jax.types import InputError


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder that takes its place when the block ends, and is gone when the block fails.

    It grows in ``.<name>.partial`` beside its place. ``.<name>.lock`` is held meanwhile by the
    system, which lets go of it however the process ends: what a killed one left is cleaned up here.

    Args:
        out: where the folder shall be; missing, or an empty folder. Parents are made.

    Yields:
        The folder to fill.

    Raises:
        InputError: another process is making the same folder, or has just made it.
        OSError: there is no place to write.
    """
    partial, lock_file = (out.with_name(f".{out.name}.{end}") for end in ("partial", "lock"))
    made = [parent for parent in out.parents if not parent.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            out, "is being made by another process", "one at a time", "wait for it to end"
        ) from error
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(out, "was made just now", "a new folder", "run the command again")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        partial.replace(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        # Before the lock is let go: whoever opened the file by then sees that it has no name.
        lock_file.unlink(missing_ok=True)
        lock.release()
        for parent in made:
            with suppress(OSError):  # not empty, where all went well
                parent.rmdir()
