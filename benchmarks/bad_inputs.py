"""Whether every command refuses what is wrong, in one line, at once, leaving nothing behind.

    python benchmarks/bad_inputs.py [--only TEXT]

Each entry of the corpus is built in a folder of its own and given to ``penn`` in a fresh process.
It must end with the exit code and the line that were written down before it was first run: for a
mistake 2 and one line ``penn: error: …``, for what is only odd 0 and a finding that names the case.
No traceback, not a file or folder more, fewer or other than before, at most five seconds (start of
the process and imports included), at most 1 GiB of memory (of the process or any one it starts).
The exit code is 1 if any entry fails. ``tests/test_bad_inputs.py`` runs the same corpus.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from bad_corpus import CORPUS, Entry, Given, make_given

SECONDS, BYTES = 5.0, 1024**3
CUT_OFF = 60.0
"""A process that takes so long hangs."""


def snapshot(folder: Path, leaves: str) -> dict[str, tuple[int, ...]]:
    """What lies in a folder, but for what may be left; a subfolder is told by its own entries."""
    found = {}
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if inside.parts[0] != leaves:
            at = path.lstat()
            times = () if path.is_dir() else (at.st_size, at.st_mtime_ns)
            found[str(inside)] = (at.st_mode, *times)
    return found


def judge(entry: Entry, code: int | None, out: str, error: str) -> list[str]:
    """What is wrong with how a command ended."""
    wrong = []
    if code != entry.code:
        wrong.append(f"exit code {code}, not {entry.code}")
    if "Traceback" in out + error:
        wrong.append("a traceback")
    if entry.code and (error.count("\n") != 1 or not error.startswith("penn: error: ")):
        wrong.append(f"not one line: {error[-300:]!r}")
    if re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", error):
        wrong.append("control characters on stderr")
    said = error if entry.code else " ".join(out.split())
    if not re.search(entry.said, said):
        wrong.append(f"does not say {entry.said!r}: {said[-300:]!r}")
    return wrong


class Outcome(NamedTuple):
    wrong: list[str]
    seconds: float
    peak: int
    error: str


def run_process(entry: Entry, folder: Path, given: Given, environment: dict[str, str]) -> Outcome:
    """Give an entry to a fresh ``penn`` and judge all of what it does."""
    command = [str(word) for word in entry.build(folder, given)]
    before = snapshot(folder, entry.leaves)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "penn_jax.cli", *command],
            stdout=out,
            stderr=error,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        timer = threading.Timer(CUT_OFF, os.kill, (process.pid, signal.SIGKILL))
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        seconds = time.monotonic() - start
        process.returncode = code = os.waitstatus_to_exitcode(status)
        out.seek(0)
        error.seek(0)
        said, told = out.read(), error.read()
    wrong = judge(entry, code, said, told)
    after = snapshot(folder, entry.leaves)
    if entry.code and after != before:
        differing = sorted({*before.items()} ^ {*after.items()})
        wrong.append(f"left or changed {', '.join(sorted({name for name, _ in differing})[:3])}")
    peak = usage.ru_maxrss * 1024
    if entry.code and seconds > SECONDS:
        wrong.append(f"took {seconds:.1f} s")
    if entry.code and peak > BYTES:
        wrong.append(f"took {peak / 1024**2:.0f} MiB")
    return Outcome(wrong, seconds, peak, told.strip())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="entries whose name has this text")
    only = parser.parse_args().only
    names = [entry.name for entry in CORPUS]
    assert len(set(names)) == len(names), "two entries of one name"
    failed, slowest, largest, count = [], 0.0, 0, 0
    with tempfile.TemporaryDirectory(prefix="penn-bad-inputs-") as made:
        root = Path(made)
        environment = {
            "JAX_PLATFORMS": "cpu",
            **os.environ,
            "COLUMNS": "200",
            "JAX_COMPILATION_CACHE_DIR": str(root / "xla"),
        }

        def penn(*words: object) -> None:
            command = [sys.executable, "-m", "penn_jax.cli", *map(str, words)]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)

        (root / "given").mkdir()
        given = make_given(root / "given", penn)
        for number, entry in enumerate(entry for entry in CORPUS if only in entry.name):
            folder = root / str(number)
            folder.mkdir()
            outcome = run_process(entry, folder, given, environment)
            count += 1
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.peak)
            failed += [entry.name] if outcome.wrong else []
            print(
                f"{'FAILS' if outcome.wrong else 'ok':5} {outcome.seconds:5.1f} s "
                f"{outcome.peak / 1024**2:5.0f} MiB  {entry.name}"
            )
            for line in outcome.wrong:
                print(f"        {line}")
            shutil.rmtree(folder)
    print(
        f"{count} entries, {len(failed)} failed; slowest {slowest:.1f} s, "
        f"largest {largest / 1024**2:.0f} MiB"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
