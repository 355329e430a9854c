"""Fills the disk under a training run and looks at what is left.

    python benchmarks/full_disk.py

Mounts a small tmpfs in a mount namespace of its own (``unshare``: Linux, root or user namespaces),
trains on it until nothing more fits, and checks: one line on stderr, exit code 2, no traceback,
every checkpoint that was sealed before is whole; then frees space, resumes, and compares the end
with a run on a roomy disk, bit for bit. Exits 1 if something else happens.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kill_and_resume import first_difference, make_job, outcome, run_to_end

from penn_jax.optim.seal import damage


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=64, help="size of the small disk")
    parser.add_argument(
        "--rooms",
        type=float,
        nargs="+",
        default=[4.0, 4.5, 5.0],
        help="how many checkpoints fit on it, an experiment each",
    )
    options = parser.parse_args()
    if "PENN_SMALL_DISK" in os.environ:
        return on_small_disk(Path(os.environ["PENN_SMALL_DISK"]), options.rooms)
    with tempfile.TemporaryDirectory() as temporary:
        mount = f"mount -t tmpfs -o size={options.mebibytes}m none {temporary}"
        again = f"{mount} && exec {shlex.join([sys.executable, *sys.argv])}"
        environment = {**os.environ, "PENN_SMALL_DISK": temporary}
        root = [] if os.geteuid() == 0 else ["-r"]
        command = ["unshare", "-m", *root, "sh", "-c", again]
        return subprocess.run(command, env=environment, check=False).returncode


def on_small_disk(disk: Path, rooms: list[float]) -> int:
    """The experiments; ``disk`` is small and empty."""
    with tempfile.TemporaryDirectory() as temporary:
        roomy = Path(temporary)
        job = make_job(roomy)
        run_to_end(job, roomy / "undisturbed")
        expected = outcome(roomy / "undisturbed")
        last = max((roomy / "undisturbed" / "checkpoints").iterdir())
        good = 0
        for room in rooms:
            filler = free(disk) - int(room * used(last))
            (disk / "filler").write_bytes(bytes(filler))
            good += nothing_is_lost(job, disk, expected)
            shutil.rmtree(disk / "run")
        print(f"{good} of {len(rooms)} lost nothing")
        return 0 if good == len(rooms) else 1


def nothing_is_lost(job: list[str], disk: Path, expected: dict[str, Any]) -> bool:
    """Train into the end of the disk, look, make room, resume, compare."""
    out = disk / "run"
    done = subprocess.run([*job, str(out)], capture_output=True, text=True, check=False)
    print(f"exit code {done.returncode}: {done.stderr.strip()}")
    wrong = {path.name: damage(path) for path in (out / "checkpoints").glob("*[0-9]")}
    print(f"checkpoints left: {', '.join(wrong)}; damaged: {sum(map(bool, wrong.values()))}")
    (disk / "filler").unlink()
    run_to_end(job, out)
    differs = first_difference(outcome(out), expected)
    print(f"after space was freed, the resumed run: {differs or 'equal, bit for bit'}")
    lines = done.stderr.splitlines()
    return (
        done.returncode == 2
        and len(lines) == 1
        and lines[0].startswith("penn: error:")
        and len(wrong) > 0
        and not any(wrong.values())
        and differs is None
    )


def used(folder: Path) -> int:
    """Bytes of the pages that a folder's files take."""
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return sum(-(-size // 4096) * 4096 for size in sizes)


def free(disk: Path) -> int:
    """Bytes that still fit."""
    state = os.statvfs(disk)
    return state.f_bavail * state.f_frsize


if __name__ == "__main__":
    sys.exit(main())
