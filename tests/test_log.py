"""The log of a run: cut where a resumed run goes on."""

import json

import pytest

from penn_jax.log import Log


def test_log_drops_what_the_resumed_run_writes_again(tmp_path):
    log = Log(tmp_path, 0)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 1.0 / step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    log = Log(tmp_path, 20)
    log.write({"step": 30, "loss": 0.5})
    log.close()
    points = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == [10, 20, 30]
    assert points[-1]["loss"] == 0.5


def test_a_full_disk_is_an_os_error_and_not_silence(tmp_path):
    # /dev/full takes nothing: every flush to it is ENOSPC.
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space"):  # noqa: PT012
        log = Log(tmp_path, 0)
        log.write({"step": 1, "loss": 0.5})
