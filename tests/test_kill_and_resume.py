"""Runs that are killed or asked to end go on as if nothing had happened."""

import json
import signal
import subprocess
import time
from dataclasses import replace

import pytest
from kill_and_resume import (
    CONFIG,
    first_difference,
    kill_after,
    kill_in_save,
    make_job,
    outcome,
    run_to_end,
    start_and_kill,
)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    train = replace(CONFIG.train, max_steps=36, validate_every=18, checkpoint_every=6)
    return make_job(tmp_path_factory.mktemp("job"), replace(CONFIG, train=train))


@pytest.fixture(scope="module")
def undisturbed(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run_to_end(job, out)
    return outcome(out)


@pytest.mark.slow
def test_sigkill_in_a_save_and_at_any_moment(job, undisturbed, tmp_path):
    out = tmp_path / "run"
    assert start_and_kill(job, out, kill_in_save(2, 0.0)).startswith("in the save of step ")
    start_and_kill(job, out, kill_after(1.0))
    run_to_end(job, out)
    assert first_difference(outcome(out), undisturbed) is None


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_so(job, undisturbed, tmp_path, number, code):
    out = tmp_path / "run"
    # In a shell's background job SIGINT is ignored, and a child inherits that unless it is caught.
    before = signal.signal(number, signal.default_int_handler)
    try:
        process = subprocess.Popen([*job, str(out)], stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(number, before)
    with process:
        while not (out / "checkpoints" / "6").exists():
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == code
    assert said.startswith(f"penn: error: {out}: stopped by a signal at step ")
    assert said.count("\n") == 1
    step = max(int(path.name) for path in (out / "checkpoints").iterdir())
    assert f"at step {step}, saved" in said
    assert 6 <= step < 36
    run_to_end(job, out)
    assert first_difference(outcome(out), undisturbed) is None


@pytest.mark.slow
def test_a_finished_run_is_resumed_without_a_step(job, undisturbed, tmp_path):
    out = tmp_path / "run"
    run_to_end(job, out)
    before = (out / "metrics.jsonl").read_bytes()
    done = subprocess.run([*job, str(out)], capture_output=True, text=True, check=True)
    assert (out / "metrics.jsonl").read_bytes() == before
    last = json.loads(before.splitlines()[-1])
    assert f"36 steps in {last['seconds']:.0f} s" in done.stdout
    assert f"validation Dice {last['dice']:.4f}" in done.stdout
