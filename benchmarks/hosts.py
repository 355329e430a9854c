"""One training shared by devices and processes, and with a process killed: is it the same?

    python benchmarks/hosts.py

Trains the same small network on synthetic spines with 1, 2, 4 and 8 CPU devices in 1, 2 and 4
processes of this machine (loopback, gloo), by ``jit`` and by ``pmap``, and compares with one device
in one process: the patches of every log point, and the largest difference of a parameter after 50
steps; and so a larger network, whose convolutions a CPU trains by Winograd's algorithm, with four
devices in 1 and 2 processes. Then kills one of four processes by SIGKILL, once each of them,
measures how long the others take to end and what they say, and resumes on two processes. Exits 1 if
anything differs by more than 1e-4, or if a process takes more than 60 seconds to end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from penn_jax.config import (
    Config,
    ModelConfig,
    OptimConfig,
    PatchConfig,
    PrepareConfig,
    TrainConfig,
    to_json,
    write_json,
)
from penn_jax.data.phantom import write_dataset
from penn_jax.data.prepare import prepare

CONFIG = Config(
    name="hosts",
    patches=PatchConfig(size=(32, 32)),
    model=ModelConfig(stem=2, channels=(4,), blocks=1, dropout=0.1),
    train=TrainConfig(batch_size=16, max_steps=50, log_every=5, checkpoint_every=5),
)
LARGE = replace(
    CONFIG,
    name="hosts_large",
    model=ModelConfig(stem=1, channels=(48,), blocks=2, dropout=0.1),
    # The higher the rate, the faster two programs part that round differently: where a ReLU's kink
    # decides, even jit and pmap on one device.
    optim=OptimConfig(learning_rate=0.01),
)
SHARED = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4), (4, 1), (4, 2)]
"""Processes, and devices of each."""
LARGE_SHARED = [(1, 4), (2, 2)]
TOLERANCE = 1e-4
SECONDS = 60


def make_job(folder: Path, config: Config = CONFIG) -> list[str]:
    """Prepare synthetic spines and return the command of the run, all but its ``--out``."""
    folder.mkdir(exist_ok=True)
    write_dataset(folder / "raw", 5, seed=0, shape=(64, 60, 6), spacing=(3.0, 3.0, 6.0))
    prepare(folder / "raw", folder / "prepared", PrepareConfig(), workers=1)
    write_json(folder / "hosts.json", to_json(config))
    return [
        *(sys.executable, "-m", "penn_jax.cli", "train", str(folder / "hosts.json"), "--quiet"),
        *("--data", str(folder / "prepared"), "--resume", "--train.workers=0"),
    ]


def start(
    job: list[str], out: Path | str, processes: int, devices: int = 1
) -> list[subprocess.Popen]:
    """Start the processes of one run, each with so many CPU devices."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    several = []
    if processes > 1:
        several = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(processes)]
    return [
        subprocess.Popen(
            [*job, "--out", str(out), *several, *(["--process", str(number)] if several else [])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]


def finish(running: list[subprocess.Popen]) -> None:
    """Wait until all processes of a run are done."""
    said = [process.communicate() for process in running]
    for number, (process, (_, errors)) in enumerate(zip(running, said, strict=True)):
        if process.returncode:
            raise RuntimeError(f"process {number}: exit code {process.returncode}: {errors}")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def places(out: Path) -> dict[int, str]:
    """What stands for all patches up to each log point."""
    points = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {point["step"]: point["places"] for point in points if "places" in point}


def state(out: Path) -> dict[str, np.ndarray]:
    """Parameters, momentum, statistics and averages of the last checkpoint."""
    import orbax.checkpoint as ocp
    from jax.tree_util import keystr, tree_leaves_with_path

    last = max((out / "checkpoints").glob("*[0-9]"), key=lambda path: int(path.name))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.restore(last.resolve() / "state")
    return {
        keystr(path): np.asarray(leaf, np.float64) for path, leaf in tree_leaves_with_path(tree)
    }


def largest_difference(found: Path, expected: Path, part: str = "") -> float:
    """Of any value of the training state of two runs, or of a part of it."""
    one, other = state(found), state(expected)
    if one.keys() != other.keys():
        raise RuntimeError(f"{found} has other arrays than {expected}")
    names = [name for name in other if name.startswith(part)]
    return max(float(np.abs(one[name] - other[name]).max()) for name in names)


def wait_for_step(out: Path, step: int, running: list[subprocess.Popen]) -> None:
    """Wait until a run has a checkpoint of at least this step."""
    while not any(int(path.name) >= step for path in (out / "checkpoints").glob("*[0-9]")):
        if any(process.poll() is not None for process in running):
            raise RuntimeError(f"{out}: a process ended: {[p.communicate() for p in running]}")
        time.sleep(0.01)


def kill_one(running: list[subprocess.Popen], number: int) -> tuple[float, list[tuple[int, str]]]:
    """Kill one process; the seconds until all others have ended, their exit codes and words."""
    running[number].send_signal(signal.SIGKILL)
    began = time.monotonic()
    others = [process for process in running if process is not running[number]]
    said = [process.communicate(timeout=2 * SECONDS)[1] for process in others]
    seconds = time.monotonic() - began
    running[number].communicate()
    return seconds, [(p.returncode, text) for p, text in zip(others, said, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for config, shared in ((LARGE, LARGE_SHARED), (CONFIG, SHARED)):
            job = make_job(folder / config.name, config)
            alone = folder / config.name / "alone"
            finish(start(job, alone, 1))
            for kind in ("jit", "pmap"):
                for processes, devices in shared:
                    out = alone.with_name(f"{kind}-{processes}-{devices}")
                    began = time.monotonic()
                    finish(start([*job, f"--train.parallel={kind}"], out, processes, devices))
                    seconds = time.monotonic() - began
                    same = places(out) == places(alone)
                    far = largest_difference(out, alone, "['params']")
                    wrong += not same or far > TOLERANCE
                    print(
                        f"{config.name}, {processes} × {devices} {kind:5} {seconds:6.1f} s  "
                        f"same patches {same}, largest difference of a parameter {far:.1e}, "
                        f"with momentum and averages {largest_difference(out, alone):.1e}",
                        flush=True,
                    )
        for number in range(4):
            out = folder / f"killed-{number}"
            running = start(job, out, 4)
            wait_for_step(out, 20, running)
            seconds, ended = kill_one(running, number)
            finish(start(job, out, 2, 2))
            same, far = places(out) == places(alone), largest_difference(out, alone)
            wrong += not same or far > TOLERANCE or seconds > SECONDS
            print(
                f"process {number} of 4 killed: the others end within {seconds:.1f} s with exit "
                f"codes {[code for code, _ in ended]}; resumed on 2: same patches {same}, "
                f"largest difference {far:.1e}\n  {ended[0][1].strip()}",
                flush=True,
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
