"""Fills the disk under a training run and looks at what is left.

    python benchmarks/full_disk.py [--mebibytes 64]

Mounts a small tmpfs in a mount namespace of its own (``unshare``: Linux, root or user namespaces),
trains on it until nothing more fits, and checks: one line on stderr, exit code 2, no traceback,
every checkpoint that was sealed before is whole; then frees space, resumes, and compares the end
with a run on a roomy disk, bit for bit. Exits 1 if something else happens.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from kill_and_resume import first_difference, make_job, outcome, run_to_end

from penn_jax.optim.checkpoint import damage


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=64, help="size of the small disk")
    options = parser.parse_args()
    if "PENN_SMALL_DISK" in os.environ:
        return on_small_disk(Path(os.environ["PENN_SMALL_DISK"]))
    with tempfile.TemporaryDirectory() as temporary:
        mount = f"mount -t tmpfs -o size={options.mebibytes}m none {temporary}"
        again = f"{mount} && exec {sys.executable} {Path(__file__).resolve()}"
        environment = {**os.environ, "PENN_SMALL_DISK": temporary}
        root = [] if os.geteuid() == 0 else ["-r"]
        command = ["unshare", "-m", *root, "sh", "-c", again]
        return subprocess.run(command, env=environment, check=False).returncode


def on_small_disk(disk: Path) -> int:
    """The experiment; ``disk`` is small and empty."""
    with tempfile.TemporaryDirectory() as temporary:
        roomy = Path(temporary)
        job = make_job(roomy)
        run_to_end(job, roomy / "undisturbed")
        # Room for two steps and a half: the third that is written meets the end of the disk.
        last = max((roomy / "undisturbed" / "checkpoints").iterdir())
        (disk / "filler").write_bytes(bytes(free(disk) - 5 * used(last) // 2))
        out = disk / "run"
        done = subprocess.run([*job, str(out)], capture_output=True, text=True, check=False)
        print(f"exit code {done.returncode}: {done.stderr.strip()}")
        steps = sorted((out / "checkpoints").iterdir(), key=lambda path: int(path.name))
        wrong = {path.name: damage(path) for path in steps}
        print(f"checkpoints left: {', '.join(wrong)}; damaged: {sum(map(bool, wrong.values()))}")
        (disk / "filler").unlink()
        run_to_end(job, out)
        differs = first_difference(outcome(out), outcome(roomy / "undisturbed"))
        print(f"after space was freed, the resumed run: {differs or 'equal, bit for bit'}")
        lines = done.stderr.splitlines()
        good = (
            done.returncode == 2
            and len(lines) == 1
            and lines[0].startswith("penn: error:")
            and len(steps) > 0
            and not any(wrong.values())
            and differs is None
        )
        print("nothing was lost" if good else "SOMETHING WENT WRONG")
        return 0 if good else 1


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
