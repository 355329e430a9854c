"""Repeats a study and compares the hashes of its tables.

    python benchmarks/repeat_study.py [--kills 6] [--seed 0]

A small study on synthetic spines (an arm with a sweep of learning rates, one with pre-training, two
seeds, budgets in steps) is done four times: twice from scratch; once killed by SIGKILL and resumed,
first where a pre-trained run has begun and saved nothing, then at random moments; once by two
processes that share it. The four hashes of the results must be one. Exits 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kill_and_resume import make_job

STUDY = """
from dataclasses import replace
from penn_jax.config import Arm, Config, ModelConfig, PatchConfig, Study, TrainConfig

BASE = Config(
    patches=PatchConfig(size=(32, 32)),
    model=ModelConfig(channels=(8, 16), blocks=1),
    train=TrainConfig(
        batch_size=8, max_steps=60, validate_every=20, checkpoint_every=10, log_every=10, labelled=2
    ),
)
MASKED = replace(BASE, name="masked", train=replace(BASE.train, max_steps=30, labelled=0))
study = Study(
    name="repeat",
    title="Repeat",
    arms=(
        Arm("scratch", BASE, learning_rates=(0.02, 0.1)),
        Arm("pre-trained", BASE, pretrain=MASKED, baseline="scratch"),
    ),
    seeds=(0, 1),
    target_dice=0.3,
)
"""


def start(folder: Path, out: Path) -> subprocess.Popen:
    """A process of ``penn study`` that begins, goes on or joins in."""
    command = [sys.executable, "-m", "penn_jax.cli", "study", str(folder / "study.py"), "--quiet"]
    options = ["--data", str(folder / "prepared"), "--out", str(out), "--resume"]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_first_steps(process: subprocess.Popen, run: Path) -> None:
    """Until a run has begun: all that it has so far are the weights it starts from."""
    while process.poll() is None and not (run / "checkpoints").exists():
        time.sleep(0.001)


def finish(process: subprocess.Popen) -> None:
    """Wait for its end."""
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {said.decode()}")


def results(out: Path) -> str:
    """The hash in the study's table."""
    return json.loads((out / "table.json").read_text())["hashes"]["results"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_job(folder)
        (folder / "study.py").write_text(STUDY)

        began = time.monotonic()
        for name in ("first", "again"):
            finish(start(folder, folder / name))
            found[name] = results(folder / name)
            print(f"{name}: {found[name]} after {time.monotonic() - began:.0f} s", flush=True)
        seconds = (time.monotonic() - began) / 2

        out, kills = folder / "killed", 0
        while kills < options.kills:
            process = start(folder, out)
            if kills:
                time.sleep(rng.uniform(0.1, 0.25) * seconds)
            else:
                wait_for_first_steps(process, out / "runs" / "pre-trained" / "fold0-seed0")
            if process.poll() is not None:
                break
            process.kill()
            process.communicate()
            kills += 1
            done = len(list(out.rglob("result.json")))
            print(f"killed with {done} runs done", flush=True)
        finish(start(folder, out))
        found[f"killed {kills} times"] = results(out)

        both = [start(folder, folder / "shared") for _ in range(2)]
        for process in both:
            finish(process)
        found["two processes"] = results(folder / "shared")
    for name, value in found.items():
        print(f"{name}: {value}")
    return 0 if len(set(found.values())) == 1 and kills else 1


if __name__ == "__main__":
    sys.exit(main())
