"""Kills training runs by SIGKILL at random moments and compares what the resumed runs end with.

    python benchmarks/kill_and_resume.py --runs 20

Each run is a process of ``penn train`` on synthetic spines that saves every few steps. It is
killed one to three times: at a moment drawn uniformly over the run's time, or, every second time,
within a save: as soon as a checkpoint is seen in the making, after a random wait. Then
it is resumed to its end. Parameters, batch statistics, momentum, weight average and counters must
equal those of a run that nobody disturbed bit for bit, and so must every line of the log but for
its times. Exits 1 if one run differs.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from penn_jax.config import (
    Config,
    ModelConfig,
    PatchConfig,
    PrepareConfig,
    TrainConfig,
    to_json,
    write_json,
)
from penn_jax.data.phantom import write_dataset
from penn_jax.data.prepare import prepare
from penn_jax.optim.seal import damage

CONFIG = Config(
    name="kill",
    patches=PatchConfig(size=(32, 32)),
    model=ModelConfig(channels=(16, 32), blocks=1),
    train=TrainConfig(
        batch_size=8, max_steps=240, validate_every=60, checkpoint_every=8, log_every=4
    ),
)
ENDED = "had ended"
TIMES = ("seconds", "waiting", "compiling")
"""Values of a log line that follow the clock."""


Wait = Callable[[Path, subprocess.Popen], None]
"""Given a run directory and its process, returns when the process is to be killed."""


def make_job(folder: Path, config: Config = CONFIG) -> list[str]:
    """Prepare synthetic spines and return the command of the run, all but its ``--out``."""
    write_dataset(folder / "raw", 5, seed=0, shape=(64, 60, 6), spacing=(3.0, 3.0, 6.0))
    prepare(folder / "raw", folder / "prepared", PrepareConfig(), workers=1)
    write_json(folder / "kill.json", to_json(config))
    return [
        *(sys.executable, "-m", "penn_jax.cli", "train", str(folder / "kill.json"), "--quiet"),
        *("--data", str(folder / "prepared"), "--resume", "--out"),
    ]


def run_to_end(job: list[str], out: Path) -> None:
    """Run, or go on, until the budget is used."""
    done = subprocess.run([*job, str(out)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{out}: exit code {done.returncode}: {done.stderr}")


def kill_after(seconds: float) -> Wait:
    """Wait a number of seconds."""
    return lambda *_: time.sleep(seconds)


def kill_in_save(number: int, wait: float) -> Wait:
    """Wait until this process writes its ``number``-th checkpoint, and ``wait`` seconds more."""

    def wait_for(out: Path, process: subprocess.Popen) -> None:
        left, deadline = unsealed(out), time.monotonic() + 120  # by a process killed before
        seen = set[str]()
        while len(seen) < number and time.monotonic() < deadline and process.poll() is None:
            seen |= unsealed(out) - left
            left &= unsealed(out)
            time.sleep(0.0005)
        time.sleep(wait)

    return wait_for


def unsealed(out: Path) -> set[str]:
    """Steps that are being written: newer than the newest that is whole."""
    names = [path.name for path in (out / "checkpoints").glob("*")]
    whole = [int(name) for name in names if name.isdigit()]
    partial = [name.removesuffix(".partial") for name in names if not name.isdigit()]
    return {step for step in partial if int(step) > max(whole, default=0)}


def start_and_kill(job: list[str], out: Path, wait: Wait) -> str:
    """Start or go on, wait, kill; says in which moment the process was."""
    with subprocess.Popen([*job, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as p:
        wait(out, p)
        p.send_signal(signal.SIGKILL)
        p.communicate()
    if p.returncode != -signal.SIGKILL:
        return ENDED
    if torn := unsealed(out):
        return f"in the save of step {min(torn)}"
    steps = [path.name for path in (out / "checkpoints").glob("*") if path.name.isdigit()]
    return f"after step {max(steps, key=int)}" if steps else "before the first save"


def outcome(out: Path) -> dict[str, Any]:
    """All that a run ends with: digests of the last checkpoint's arrays, scores, the log."""
    last = max((out / "checkpoints").glob("*[0-9]"), key=lambda path: int(path.name))
    if wrong := damage(last):
        raise RuntimeError(f"{last}: {wrong}")
    seal = json.loads((last / "seal.json").read_text())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "step": last.name,
        "arrays": seal["arrays"],
        "score": seal["score"],
        "places": seal["account"]["places"],
        "log": [{k: v for k, v in line.items() if k not in TIMES} for line in lines],
    }


def first_difference(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Where two outcomes differ, None where they do not."""
    for line, other in zip(found["log"], expected["log"], strict=False):
        if line != other:
            return f"DIFFERENT log: {line} instead of {other}"
    keys = [key for key in expected if found[key] != expected[key]]
    return f"DIFFERENT {', '.join(keys)}" if keys else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    equal = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job = make_job(folder)
        run_to_end(job, folder / "warm")  # compiles: the next one's time is the others' time
        began = time.monotonic()
        run_to_end(job, folder / "undisturbed")
        seconds = time.monotonic() - began
        expected = outcome(folder / "undisturbed")
        for number in range(options.runs):
            out, moments = folder / str(number), []
            for kill in range(rng.randint(1, 3)):
                if (number + kill) % 2:
                    wait = kill_in_save(rng.randint(1, 8), rng.uniform(0, 0.15))
                else:
                    wait = kill_after(rng.uniform(0, 0.8 * seconds))
                moments.append(start_and_kill(job, out, wait))
                if moments[-1] == ENDED:
                    break
            if moments[0] == ENDED:
                raise RuntimeError("a run was over before it was killed: the machine is too uneven")
            run_to_end(job, out)
            wrong = first_difference(outcome(out), expected)
            equal += wrong is None
            print(f"run {number}: killed {', '.join(moments)}: {wrong or 'equal'}", flush=True)
    print(f"{equal} of {options.runs} equal to the undisturbed run, bit for bit")
    return 0 if equal == options.runs else 1


if __name__ == "__main__":
    sys.exit(main())
