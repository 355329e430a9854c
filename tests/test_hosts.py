"""Several processes of this machine train as one; one killed, the others end and others go on."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import (
    CONFIG,
    TOLERANCE,
    finish,
    free_port,
    kill_one,
    largest_difference,
    make_job,
    places,
    start,
    wait_for_step,
)

PROBE = Path(__file__).with_name("probe_hosts.py")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def alone(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    finish(start(job, out, 1))
    return out


def _assert_same(out, alone):
    assert len(places(alone)) == 10
    assert places(out) == places(alone)
    assert largest_difference(out, alone) < TOLERANCE


@pytest.mark.slow
def test_two_processes_train_by_pmap_as_one_does_by_jit(job, alone, tmp_path):
    finish(start([*job, "--train.parallel=pmap"], tmp_path / "run", 2))
    _assert_same(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_run_outlives_its_processes_and_goes_on_with_others(job, alone, tmp_path):
    out = tmp_path / "run"
    running = start(job, out, 4)
    wait_for_step(out, 10, running)
    seconds, ended = kill_one(running, 2)
    assert seconds < 60
    for code, said in ended:
        assert code == 69
        last = said.splitlines()[-1]
        assert last.startswith("penn: error: another process of this run is gone")
        assert "--resume" in last

    running = start(job, out, 2)
    wait_for_step(out, 20, running)
    running[1].send_signal(signal.SIGTERM)  # one is told, and both save after the same step
    for process in running:
        _, said = process.communicate()
        assert process.returncode == 75
        step = max(int(path.name) for path in (out / "checkpoints").iterdir())
        assert f"stopped by a signal at step {step}, saved" in said
    assert step < CONFIG.train.max_steps

    finish(start(job, out, 1, 2))
    _assert_same(out, alone)


@pytest.mark.slow
def test_what_processes_do_together(job, tmp_path):
    port = free_port()
    store = job[job.index("--data") + 1]
    running = [
        subprocess.Popen(
            [sys.executable, str(PROBE), str(port), str(number), store, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in running:
        said, errors = process.communicate()
        assert process.returncode == 0, errors
        assert said.splitlines()[-1] == "as it should be"
