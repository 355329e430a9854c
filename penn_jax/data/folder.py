"""A folder that appears whole or not at all, made by one process at a time.

On a disk it is renamed into its place. In object storage, where nothing can be renamed, it counts
once its last object is there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from penn_jax.data.lease import LOCK, Lease, held
from penn_jax.data.remote import Remote, Tell
from penn_jax.types import BusyError, InputError


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


@contextmanager
def whole_remote(out: Remote, parts: str, tell: Tell) -> Iterator[Lease]:
    """Hold a folder in object storage to fill it; where the block fails it is emptied again.

    Args:
        out: where the folder shall be; there may be nothing but what a killed process left.
        parts: the folder inside that may hold such remains.
        tell: told where another process must be waited for.

    Yields:
        The lease, to be checked right before the object is put that makes the others count.

    Raises:
        InputError: another process is making the same folder, or it holds something else.
    """
    with held(out, tell) as lease:
        there = _but_the_lock(out)
        if others := [name for name in there if not name.startswith(f"{parts}/")]:
            remedy = "choose another folder or delete this one"
            raise InputError(out, f"holds {others[0]}", "a new folder", remedy)
        out.delete(there)
        try:
            yield lease
        except BusyError:
            raise  # it is another's by now
        except BaseException:
            out.delete(_but_the_lock(out))
            raise


def _but_the_lock(folder: Remote) -> list[str]:
    return [name for name in folder.names() if name != LOCK]
