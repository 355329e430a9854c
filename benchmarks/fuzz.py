"""Fuzzes whatever reads a file of the user's: NIfTI and the five kinds of JSON.

    python benchmarks/fuzz.py --minutes 30 [--seed 0] [--target nifti] [--out FOLDER]
    python benchmarks/fuzz.py --target nifti --replay FOLDER/nifti-1a2b3c4d

A file may give a result or an :class:`InputError` of one line. Anything else is a finding: another
exception, a warning, a line in the log, more than 10 s, more than 1 GiB. The input that did it is
kept in ``--out``; the script goes on, and exits with 1 in the end.

Inputs are mutations of small sound files, and of mutations that reached a line of ``penn_jax`` or
nibabel for the first time (:class:`Lines`): coverage guidance of our own. atheris 3.0 (libFuzzer)
with the same mutations and both packages instrumented reached 658 lines through ``nifti`` in two
minutes (122,653 executions), this script 649 (49,013). That is not worth a library that wants a
process for each target, ends it at the first finding, and sees nothing of the five JSON files,
which pydantic's compiled code reads.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import math
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType

import nibabel as nib
import numpy as np
from fuzz_inputs import compress, mutate_json, mutate_nifti, nifti_seeds, raw_folder
from rich.console import Console

from penn_jax import types
from penn_jax.config import Config, PrepareConfig, config_hash, from_json, to_json
from penn_jax.data.findings import summary
from penn_jax.data.grid import normalise, to_frames
from penn_jax.data.prepare import prepare
from penn_jax.data.raw import find_cases
from penn_jax.data.store import Store
from penn_jax.data.volume import frame_grid, read_geometry, read_image, read_labels
from penn_jax.run import read_card, read_config
from penn_jax.types import InputError

SECONDS, MEMORY = 10, 1 << 30
"""What one input may take."""

LARGEST_FRAMES = 1 << 20
"""Voxels up to which an image is cut into frames."""

LARGEST_POOL = 400

TRACED = 2000
"""Executions of a target of which every one is traced; of the later ones a tenth."""


# Targets ----------------------------------------------------------------------------------------


@dataclass
class Target:
    """One kind of file: how it is made and what reads it.

    Attributes:
        seeds: sound files.
        mutate: from a source of choices and two files to a new one.
        use: reads the file, raises ``InputError``, or something that is a finding.
    """

    seeds: list[bytes]
    mutate: Callable[[random.Random, bytes, bytes], bytes]
    use: Callable[[bytes], object]


def targets(folder: Path) -> dict[str, Target]:
    """Every target by its name.

    Args:
        folder: empty, for the files that the targets write and read.
    """
    raw = raw_folder(folder / "raw")
    manifests = []
    for name, options in (
        ("2d", PrepareConfig(allow_leak=True)),
        ("3d", PrepareConfig(dimensions=3, spacing="native", merge_labels=True)),
    ):
        store = prepare(raw, folder / name, options, workers=1)
        manifests.append((store / "manifest.json").read_bytes())
    channel = {"channels": ["T1"], "labels": {"background": 0, "tumour": 1}, "label_values": [0, 7]}
    data = {"dimensions": 2, "spacing": [1.0, 0.5], "data_hash": "0" * 64}
    split = {"split_hash": "0" * 16, "fold": 0}
    card = {
        **channel,
        **data,
        **split,
        "task": "segmentation",
        "init": None,
        "versions": {"jax": "0"},
    }
    configs = [json.dumps(to_json(config)).encode() for config in (Config(), Config(name="é"))]
    described, splits = (raw / name for name in ("dataset.json", "splits_final.json"))
    seeds = {file: [file.read_bytes()] for file in (described, splits)}
    (folder / "run").mkdir()
    (folder / "scan").mkdir()

    def written(path: Path, content: bytes) -> Path:
        path.write_bytes(content)
        return path

    def cases_of(path: Path, content: bytes) -> None:
        try:
            find_cases(written(path, content).parent)
        finally:
            path.write_bytes(seeds[path][0])

    return {
        "nifti": Target(
            nifti_seeds(),
            mutate_nifti,
            lambda content: use_nifti(written(folder / "scan/scan.nii", content)),
        ),
        "nifti.gz": Target(
            nifti_seeds(),
            mutate_nifti,
            lambda content: use_nifti(written(folder / "scan/scan.nii.gz", content)),
        ),
        "dataset": Target(
            seeds[described], mutate_json, lambda content: cases_of(described, content)
        ),
        "splits": Target(seeds[splits], mutate_json, lambda content: cases_of(splits, content)),
        "manifest": Target(
            manifests,
            mutate_json,
            lambda content: use_store(written(folder / "2d/manifest.json", content).parent),
        ),
        "config": Target(
            configs,
            mutate_json,
            lambda content: use_config(written(folder / "run/config.json", content).parent),
        ),
        "environment": Target(
            [json.dumps(card).encode()],
            mutate_json,
            lambda content: read_card(written(folder / "run/environment.json", content).parent),
        ),
    }


def use_nifti(path: Path) -> None:
    """Read a file in each way there is; frames as ``penn prepare`` cuts them."""
    readable, refused = [], None
    for read in (
        lambda: read_image([path]),
        lambda: read_labels(path),
        lambda: read_geometry(path),
    ):
        try:
            readable.append(read())
        except InputError as error:
            refused = error
    if len({volume.array.shape[:3] for volume in readable}) > 1:
        raise AssertionError("the readers see different shapes")
    for volume in readable:
        for dimensions, native in ((2, True), (2, False), (3, True), (3, False)):
            grid = frame_grid(volume, dimensions, None if native else (1.0,) * dimensions)
            if math.prod(grid.shape) > LARGEST_FRAMES:
                continue
            image = volume.array.ndim == 4
            frames = to_frames(volume.array, grid, order=int(image))
            if image and not np.isfinite(normalise(frames)).all():
                raise AssertionError("normalised intensities are not finite")
    if refused:
        raise refused


def use_store(folder: Path) -> None:
    """Open a store, and do with its manifest what takes its word for everything."""
    store = Store(folder)
    for number in range(len(store.manifest["splits"])):
        store.split(number)
    for case in store.cases:
        store.frames_shape(case)
    Console(file=io.StringIO()).print(summary(store.manifest))


def use_config(folder: Path) -> None:
    """Read a config; what is accepted must survive being written again."""
    config = read_config(folder)
    config_hash(config)
    if from_json(Config, to_json(config)) != config:
        raise AssertionError("the config changes when it is written and read")


class Hang(BaseException):
    """An input took too long; no ``except Exception`` of a reader may swallow it."""


def check(use: Callable[[bytes], object], content: bytes) -> str:
    """Use one input.

    Returns:
        ``sound``, or the kind of the refusal: its text without what is particular to the input.

    Raises:
        Exception: whatever ``use`` raises but an ``InputError`` of one line.
    """
    try:
        use(content)
    except InputError as error:
        if len(str(error).splitlines()) != 1:
            raise AssertionError(f"an error of several lines: {str(error)!r}") from error
        return _kind(error.wrong)
    return "sound"


def _kind(text: str) -> str:
    text = re.sub(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\d.e+×-]*|nan|-?inf\b", "…", text)
    return re.sub(r"[^\s(:]*\.[^\s:]*(?=:)", "…", text)[:70]


# The run ----------------------------------------------------------------------------------------


@dataclass
class Lines:
    """Lines of some folders' code that were run, at a cost that falls as they are found."""

    folders: tuple[str, ...]
    reached: int = 0
    _left: dict[int, set[int]] = field(default_factory=dict)
    _kept: list[CodeType] = field(default_factory=list)

    def trace(self, frame: FrameType, event: str, argument: object) -> Callable | None:
        code = frame.f_code
        left = self._left.get(id(code))
        if left is None:
            self._kept.append(code)  # so that its id stays its own
            ours = code.co_filename.startswith(self.folders)
            left = {line for *_, line in code.co_lines() if line} if ours else set()
            left.discard(code.co_firstlineno)
            self._left[id(code)] = left
        if not left:
            return None

        def line(frame: FrameType, event: str, argument: object) -> Callable | None:
            if frame.f_lineno in left:
                left.discard(frame.f_lineno)
                self.reached += 1
            return line

        return line


@dataclass
class Tally:
    """What became of a target's inputs."""

    executions: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    pool: list[bytes] = field(default_factory=list)


def _memory(name: str) -> int:
    """A figure of Linux's about this process, in bytes: VmRSS now, VmHWM its highest."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return 1024 * int(status.partition(f"{name}:")[2].split()[0])


class _Raise(logging.Handler):
    """What a library tells its log would reach the user's terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError(f"logged: {record.getMessage()}")


def _hang(*_: object) -> None:
    raise Hang(f"more than {SECONDS} s")


def execute(target: Target, content: bytes) -> tuple[str, BaseException | None]:
    """Use one input within the bounds of time and memory; the kind, and what was found wrong."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    before, start = _memory("VmRSS"), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        kind = check(target.use, content)
    except (Exception, Hang) as error:
        return type(error).__name__, error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if time.monotonic() - start > SECONDS:
        return "hang", Hang(f"{time.monotonic() - start:.1f} s")
    if (grown := _memory("VmHWM") - before) > MEMORY:
        return "memory", MemoryError(f"{grown / 2**20:.0f} MiB")
    return kind, None


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "penn_jax" in f.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "nowhere"
    return f"{type(error).__name__} at {place}"


def fuzz(names: list[str], minutes: float, seed: int, out: Path, made: dict[str, Target]) -> int:
    """Fuzz targets in turns of a second until the time is over; the number of findings."""
    rng = random.Random(seed)
    lines = Lines(tuple(str(Path(module.__file__).parent) for module in (types, nib)))
    tallies = {name: Tally(pool=list(made[name].seeds)) for name in names}
    found: set[tuple[str, str]] = set()
    end, turn = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end:
        name = names[turn % len(names)]
        turn += 1
        target, tally = made[name], tallies[name]
        began = time.monotonic()
        while time.monotonic() - began < 1:
            # Half of the time from a sound file: what reached something new is often broken.
            origin = rng.choice(rng.choice((target.seeds, tally.pool)))
            mutation = target.mutate(rng, origin, rng.choice(tally.pool))
            content = compress(rng, mutation) if name.endswith(".gz") else mutation
            before, start = lines.reached, time.monotonic()
            # Tracing halves the speed, and most lines are found soon.
            traced = tally.executions < TRACED or rng.random() < 0.1
            sys.settrace(lines.trace if traced else None)
            try:
                kind, error = execute(target, content)
            finally:
                sys.settrace(None)
            tally.executions += 1
            tally.kinds[kind] += 1
            tally.slowest = max(tally.slowest, time.monotonic() - start)
            if lines.reached > before and len(tally.pool) < LARGEST_POOL:
                tally.pool.append(mutation)
            if error is not None and (name, _where(error)) not in found:
                found.add((name, _where(error)))
                _keep(out, name, content, error)
        tally.seconds += time.monotonic() - began
    for name, tally in tallies.items():
        _report(name, tally)
    print(f"{lines.reached} lines of penn_jax and nibabel reached; {len(found)} findings")
    return len(found)


def _keep(out: Path, name: str, content: bytes, error: BaseException) -> None:
    path = out / f"{name}-{hashlib.sha256(content).hexdigest()[:8]}"
    path.write_bytes(content)
    print(f"FINDING in {name}: {_where(error)}: {str(error)[:300]}")
    print(f"  python benchmarks/fuzz.py --target {name} --replay {path}", flush=True)


def _report(name: str, tally: Tally) -> None:
    print(
        f"{name}: {tally.executions} executions in {tally.seconds:.0f} s, the slowest "
        f"{1000 * tally.slowest:.0f} ms; {len(tally.kinds)} distinct outcomes, "
        f"{len(tally.pool)} inputs that reached something new"
    )
    for kind, count in tally.kinds.most_common(12):
        print(f"  {count:8d}  {kind}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", help="one target; all of them if left out")
    parser.add_argument("--out", type=Path, help="where inputs that found something are kept")
    parser.add_argument("--replay", type=Path, help="use this one input of --target")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="fuzz-"))
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGALRM, _hang)
    logging.getLogger().addHandler(_Raise())
    with tempfile.TemporaryDirectory() as folder:
        made = targets(Path(folder))
        names = [options.target] if options.target else list(made)
        warnings.simplefilter("error")
        if options.replay:
            print(check(made[names[0]].use, options.replay.read_bytes()))
            return 0
        return min(1, fuzz(names, options.minutes, options.seed, out, made))


if __name__ == "__main__":
    sys.exit(main())
