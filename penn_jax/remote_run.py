"""Run directories in object storage: written and read as local copies.

A run is written in a folder of its own on the local disk, the same as everywhere, and published
after each checkpoint: first the log, then the files of the new step, then its seal, then the
config; only then steps that are no longer kept are deleted, their seals first. A step counts only
with its seal, a run only with its config. What a process published before it was killed is thus
what ``--resume`` goes on with, on whatever machine; the local copy is forgotten.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from penn_jax.data.lease import LOCK, Lease, held
from penn_jax.data.remote import Place, Remote
from penn_jax.optim.seal import SEAL, read_seal
from penn_jax.progress import warn
from penn_jax.types import DivergedError, InputError, StoppedError

CHECKPOINTS = "checkpoints"
_CONFIG = "config.json"
_RESUMED = (_CONFIG, "environment.json", "metrics.jsonl")
"""What a resumed run needs besides its checkpoints."""
_BEFORE_THE_CONFIG = (f"{CHECKPOINTS}/", "environment.json", "metrics.jsonl", "events")
"""How the names begin of what a run leaves that was killed while it was published first."""


class Work(NamedTuple):
    """Where a run is written."""

    folder: Path
    publish: Callable[[], None]
    """Makes what is there by now count; nothing needs to be done on a local disk."""
    is_copy: bool
    """Whether the folder is this process's alone; one on a disk is shared by all of a run."""


@contextlib.contextmanager
def at_work(out: Place, resume: bool, writes: bool = True) -> Iterator[Work]:
    """A local folder in which to write a run.

    Args:
        out: the run directory. In object storage it is held by a lease, copied if the run goes on,
            and published once more when the block ends.
        resume: go on with what is there.
        writes: of several processes, whether this is the one; the others, who come after it, get a
            copy to restore from and publish nothing.

    Raises:
        InputError: ``out`` holds something else, or a run that is not to be gone on with, or
            another process is writing it.
    """
    if isinstance(out, Path):
        yield Work(out, lambda: None, is_copy=False)
        return
    if not resume and (out / _CONFIG).is_file():
        raise InputError(out, "holds a run", "a new folder", "add --resume or choose another")
    if not writes:
        with _copy_of(out) as folder:
            _download_run(out, out.names(), folder)
            yield Work(folder, lambda: None, is_copy=True)
        return
    with held(out, warn) as lease, _copy_of(out) as folder:
        names = [name for name in out.names() if name != LOCK]
        if _CONFIG in names:
            _download_run(out, names, folder)
        elif others := [name for name in names if not name.startswith(_BEFORE_THE_CONFIG)]:
            wrong = f"holds {others[0]} and is no run"
            raise InputError(out, wrong, "a new folder", "choose another")
        else:
            out.delete(names)
            names = []
        publish = _Publisher(out, folder, names, lease).publish
        try:
            yield Work(folder, publish, is_copy=True)
        except DivergedError:
            publish()  # its log tells why
            raise
        publish()


class _Publisher:
    """Brings a run in object storage up to its local copy.

    Args:
        out: the run.
        folder: its copy, as it was downloaded.
        names: of all objects of the run.
        lease: of the run.
    """

    def __init__(self, out: Remote, folder: Path, names: Sequence[str], lease: Lease):
        self._out, self._folder, self._lease = out, folder, lease
        self._there = set(names)
        self._published = {name: _version(folder / name) for name in _files(folder)}

    def publish(self) -> None:
        """Put what is new or has changed, in an order that is safe to be cut off.

        Raises:
            BusyError: another process has taken the run over.
            InputError: the service is out of reach.
        """
        local = _files(self._folder)
        changed = [name for name in local if self._is_new(name)]
        for turn in (_is_log, _is_of_step, _is_seal, _is_config):
            self._lease.check()
            self._put([name for name in changed if turn(name)])
        gone = {name for name in self._there if name.startswith(f"{CHECKPOINTS}/")} - {*local}
        for turn in (_is_seal, _is_of_step):
            self._out.delete([name for name in gone if turn(name)])
        self._there -= gone

    def _is_new(self, name: str) -> bool:
        return self._published.get(name) != _version(self._folder / name)

    def _put(self, names: Sequence[str]) -> None:
        versions = {name: _version(self._folder / name) for name in names}
        self._out.write({name: (self._folder / name).read_bytes() for name in names})
        self._published |= versions
        self._there |= {*names}


def _is_seal(name: str) -> bool:
    return name.startswith(f"{CHECKPOINTS}/") and name.endswith(f"/{SEAL}")


def _is_of_step(name: str) -> bool:
    return name.startswith(f"{CHECKPOINTS}/") and not _is_seal(name)


def _is_config(name: str) -> bool:
    return name == _CONFIG


def _is_log(name: str) -> bool:
    return not (_is_config(name) or name.startswith(f"{CHECKPOINTS}/"))


def _files(folder: Path) -> list[str]:
    """The names of all files of a run but locks and what is being written."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [
        name.as_posix()
        for name in names
        if not any(part.startswith(".") or part.endswith(".partial") for part in name.parts)
    ]


def _version(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


# ---- reading -----------------------------------------------------------------------------------


@contextlib.contextmanager
def at_hand(file: Place) -> Iterator[Path]:
    """A local copy of one file; a local one itself."""
    if isinstance(file, Path):
        yield file
        return
    with _copy_of(file) as path:
        content, _ = file.look()
        if content is not None:
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
        yield path


@contextlib.contextmanager
def checkpoints_at_hand(run: Place) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """A run's checkpoints for :func:`penn_jax.optim.checkpoint.read_model`.

    Yields:
        Their local folder. Of a run in object storage, it holds the seals alone, from which is seen
        which step to take; the function then brings the rest of a step.
    """
    folder = run / CHECKPOINTS
    if isinstance(folder, Path):
        yield folder, lambda step: None
        return
    with _copy_of(folder) as copy:
        _download_seals(folder, copy)

        def bring(step: Path) -> None:
            _download_step(folder, copy, step.name)
            if not (folder / step.name / SEAL).is_file():  # a better one replaced it meanwhile
                shutil.rmtree(step)

        yield copy, bring


@contextlib.contextmanager
def written(out: Place) -> Iterator[Path]:
    """A local path for a file that is put in its place when the block ends."""
    if isinstance(out, Path):
        yield out
        return
    with _copy_of(out) as path:
        path.parent.mkdir(parents=True)
        yield path
        out.write_bytes(path.read_bytes())


def _download_run(out: Remote, names: Sequence[str], folder: Path) -> None:
    """All that a resumed run needs: of its checkpoints those that are sealed."""
    if _CONFIG not in names:
        return
    _download(out, [name for name in _RESUMED if name in names], folder)
    there, here = out / CHECKPOINTS, folder / CHECKPOINTS
    for step in _download_seals(there, here):
        _download_step(there, here, step)


def _download_seals(there: Remote, folder: Path) -> list[str]:
    """The seals of a run's checkpoints; returns the steps they are of."""
    paths = map(PurePosixPath, there.names())
    steps = [p.parts[0] for p in paths if p.parts[0].isdecimal() and p.parts[1:] == (SEAL,)]
    _download(there, [f"{step}/{SEAL}" for step in steps], folder)
    return steps


def _download_step(there: Remote, folder: Path, step: str) -> None:
    """What a step's seal, which is here already, says that the step is; nothing else counts."""
    try:
        files = read_seal(folder / step)["files"]
    except InputError:
        return  # whoever reads the step will tell
    _download(there / step, [name for name in files if _is_inside(name)], folder / step)


def _download(there: Remote, names: Sequence[str], folder: Path) -> None:
    for name, content in there.read(names).items():
        if content is not None:  # else it was deleted just now
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


@contextlib.contextmanager
def _copy_of(there: Remote) -> Iterator[Path]:
    """The path of a local copy, not made yet and gone at the end; errors name what it is of."""
    with tempfile.TemporaryDirectory(prefix="penn-") as temporary:
        # So that a warning that names the copy tells what it is of.
        copy = Path(temporary).resolve() / "gs" / there.bucket / there.key
        try:
            yield copy
        except (InputError, DivergedError, StoppedError) as error:
            error.args = (str(error).replace(str(copy), str(there)),)
            raise
