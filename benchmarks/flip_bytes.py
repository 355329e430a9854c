"""Changes one byte of the latest checkpoint at random places and resumes: is each one noticed?

    python benchmarks/flip_bytes.py --flips 50

A run of ``penn train`` on synthetic spines is stopped by its budget. For each flip a copy of it is
made, one byte of one file of the latest step is changed (every byte of the step equally likely),
and ``penn train --resume`` goes on for the rest of a longer schedule. Noticed means: the damaged
step is named on stderr and moved aside, training starts at the step before, and the run ends with
the arrays of the run that was not damaged. Exits 1 if one flip is not noticed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from kill_and_resume import CONFIG, first_difference, make_job, outcome

from penn_jax.cli import main as penn

STEPS, EVERY = 16, 8


def flip_one(folder: Path, rng: random.Random) -> str:
    """Change one byte of a folder's files and say which."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    file = rng.choices(files, [path.stat().st_size for path in files])[0]
    content = bytearray(file.read_bytes())
    position = rng.randrange(len(content))
    content[position] ^= rng.randrange(1, 256)
    file.write_bytes(content)
    return f"{file.relative_to(folder)} at {position}"


def train(job: list[str], out: Path) -> str:
    """Run the job in this process, where the program is compiled already; returns its stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = penn([*job[3:], str(out)])
    if code:
        raise RuntimeError(said.getvalue())
    return said.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    course = replace(CONFIG.train, max_steps=STEPS, validate_every=0, checkpoint_every=EVERY)
    noticed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job = make_job(folder, replace(CONFIG, train=course))
        train(job, folder / "whole")
        expected = outcome(folder / "whole")
        for number in range(options.flips):
            out = folder / str(number)
            shutil.copytree(folder / "whole", out)
            flipped = flip_one(out / "checkpoints" / str(STEPS), rng)
            said = train(job, out)
            steps = sorted(int(path.name) for path in (out / "checkpoints").iterdir())
            good = (
                f"checkpoints/{STEPS}: damaged" in said
                and (out / "damaged" / str(STEPS)).is_dir()
                and steps == [STEPS - EVERY, STEPS]
                and first_difference(outcome(out), expected) is None
            )
            noticed += good
            print(f"{flipped}: {'noticed, mended' if good else 'NOT NOTICED'}", flush=True)
            shutil.rmtree(out)
    print(f"{noticed} of {options.flips} noticed; each run went on from step {STEPS - EVERY}")
    return 0 if noticed == options.flips else 1


if __name__ == "__main__":
    sys.exit(main())
