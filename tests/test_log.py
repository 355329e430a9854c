"""The log of a run: cut where a resumed run goes on."""

import contextlib
import json
import subprocess
import sys
from types import SimpleNamespace

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


@pytest.mark.parametrize("broken", ["_file", "_events"])
def test_a_full_disk_is_an_os_error_and_not_silence(tmp_path, monkeypatch, broken):
    def full():
        raise OSError(28, "No space left on device")

    with contextlib.closing(Log(tmp_path, 0)) as log:
        with monkeypatch.context() as disk:
            disk.setattr(log, broken, SimpleNamespace(write=len, flush=full, write_event=bool))
            with pytest.raises(OSError, match=r"No space.*metrics\.jsonl"):
                log.write({"step": 1, "loss": 0.5})
        log.write({"step": 2, "loss": 0.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2


def test_no_torch_is_imported_for_scalars(tmp_path):
    program = f"""
import importlib.util, sys
from pathlib import Path
from penn_jax.log import Log
log = Log(Path({str(tmp_path)!r}), 0)
log.write({{"step": 1, "loss": 0.5}})
log.close()
assert "torch" not in sys.modules
assert importlib.util.find_spec("torch")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
