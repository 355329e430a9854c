"""``launch/slurm.sbatch`` in a real SLURM of one node; skipped where SLURM is not installed."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from kill_and_resume import CONFIG, first_difference, make_job, outcome

ROOT = Path(__file__).parent.parent.parent
DAEMONS = ("munged", "slurmctld", "slurmd")
STEPS = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in DAEMONS),
        reason="SLURM is not installed: apt-get install slurm-wlm munge",
    ),
    pytest.mark.skipif(
        find_spec("penn_jax.distributed") is None, reason="trains in one process only"
    ),
]


@pytest.fixture(scope="module")
def cluster():
    """The environment of a running cluster, whose processes have ``penn`` on their path."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("XLA_FLAGS", None)  # one device a task, not the four of the tests
    # cat ends with this process, however that ends, and the cluster with it.
    command = [ROOT / "tests" / "slurm" / "one_node.sh", "sh", "-c", 'echo "$SLURM_CONF"; exec cat']
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        configuration = process.stdout.readline().strip()
        assert configuration, "the cluster did not start"
        yield {**environment, "SLURM_CONF": configuration}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Config and store of a short run, as arguments of ``penn train``."""
    train = replace(CONFIG.train, max_steps=STEPS, validate_every=0, checkpoint_every=5)
    command = make_job(tmp_path_factory.mktemp("job"), replace(CONFIG, train=train))
    return command[command.index("train") + 1 : command.index("--resume")]


def _ask(cluster, *command):
    return subprocess.run(
        [str(word) for word in command], env=cluster, capture_output=True, text=True, check=True
    ).stdout.strip()


def _submit(cluster, job, folder):
    script = ROOT / "launch" / "slurm.sbatch"
    options = ["--parsable", "--ntasks=2", f"--output={folder}/log", f"--chdir={folder}"]
    return _ask(cluster, "sbatch", *options, script, *job, "--out", folder / "run")


def _field(cluster, number, name):
    """A field of ``scontrol show job``."""
    shown = _ask(cluster, "scontrol", "--oneliner", "show", "job", number)
    return dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)[name]


def _wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "still not so"
        time.sleep(0.1)


def _wait_for_end(cluster, number):
    ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
    _wait_for(lambda: _field(cluster, number, "JobState") in ended, 600)
    return _field(cluster, number, "JobState")


@pytest.fixture(scope="module")
def undisturbed(cluster, job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    number = _submit(cluster, job, folder)
    assert _wait_for_end(cluster, number) == "COMPLETED", (folder / "log").read_text()
    return folder


def test_two_tasks_train_to_the_end(undisturbed):
    ended = outcome(undisturbed / "run")
    assert ended["step"] == str(STEPS)
    steps = [point["step"] for point in ended["log"] if "loss" in point]
    assert steps == list(range(4, STEPS + 1, 4))
    assert f"{STEPS} steps in" in (undisturbed / "log").read_text()


def test_a_job_that_must_stop_saves_and_goes_on(cluster, job, undisturbed, tmp_path):
    number = _submit(cluster, job, tmp_path)
    _wait_for((tmp_path / "run" / "checkpoints" / "5").exists, 300)
    # What --signal=TERM@300 has SLURM do 300 s before the time limit.
    _ask(cluster, "scancel", "--signal=TERM", number)
    assert _wait_for_end(cluster, number) == "COMPLETED", (tmp_path / "log").read_text()
    assert _field(cluster, number, "Restarts") == "1"
    assert "stopped by a signal at step " in (tmp_path / "log").read_text()
    assert first_difference(outcome(tmp_path / "run"), outcome(undisturbed / "run")) is None
