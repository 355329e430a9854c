"""The stream of batches: a function of (seed, index), whatever reads it."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from made_stores import write_store

from penn_jax.config import PatchConfig
from penn_jax.data.loader import stream
from penn_jax.data.store import Store

CONFIG = PatchConfig(size=(16, 16), neighbours=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    generator, cases = np.random.default_rng(0), {}
    for number in range(5):
        shape = (3, 20 + number, 30)
        labels = (generator.random(shape) < 0.02).astype(np.uint8) if number else None
        image = generator.normal(size=(*shape, 1)).astype(np.float32)
        cases[f"case{number}"] = (image, labels)
    write_store(folder, cases)
    return Store(folder)


def _take(store, count, **options):
    defaults = {"batch_size": 8, "seed": 1}
    batches = stream(store, store.cases, CONFIG, **{**defaults, **options})
    with contextlib.closing(batches):
        return [next(batches) for _ in range(count)]


def _assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_shapes_types_and_indices(store):
    first, second = _take(store, 2)
    assert first["image"].shape == (8, 16, 16, 3)
    assert first["image"].dtype == np.float32
    assert first["label"].shape == (8, 16, 16)
    assert first["label"].dtype == np.uint8
    np.testing.assert_array_equal(first["index"], np.arange(8))
    np.testing.assert_array_equal(second["index"], np.arange(8, 16))
    assert not np.array_equal(first["place"], second["place"])
    unlabelled = first["place"][:, 0] == 0
    assert (first["label"][unlabelled] == 255).all()


def test_the_stream_of_a_seed_stays_what_it_is(store):
    """Or a resumed run would go on with other patches, and published figures with other seeds."""
    (batch,) = _take(store, 1, batch_size=3, seed=0)
    # As drawn in November 2026: case, slice, centre, and a rotation by 3.2 degrees.
    cases_slices_centres = [[3, 1, 11.5, 8.5], [2, 1, 12.5, 12.5], [3, 2, 7.5, 21.5]]
    np.testing.assert_array_equal(batch["place"][:, :4], cases_slices_centres)
    matrix = [[0.9960654504470787, 0.05529426578770786], [-0.05529426578770786, 0.9960654504470787]]
    np.testing.assert_allclose(batch["place"][0, 4:], np.ravel(matrix), rtol=1e-12)


def test_resumed_stream_goes_on_with_the_same_patches(store):
    _assert_equal(_take(store, 6)[4:], _take(store, 2, first_batch=4))


def test_worker_processes_change_nothing(store):
    _assert_equal(_take(store, 4), _take(store, 4, workers=2))


def test_hosts_together_see_the_global_batch(store):
    whole = _take(store, 3)
    parts = [_take(store, 3, host=host, hosts=4) for host in range(4)]
    for number, batch in enumerate(whole):
        order = np.concatenate([part[number]["index"] for part in parts])
        assert sorted(order) == batch["index"].tolist()
        images = np.concatenate([part[number]["image"] for part in parts])
        np.testing.assert_array_equal(images[np.argsort(order)], batch["image"])


def test_seeds_and_epochs_differ_and_cases_are_drawn_equally_often(store):
    one, other = _take(store, 3), _take(store, 3, seed=2)
    assert not np.array_equal(one[0]["image"], other[0]["image"])
    cases = np.concatenate([batch["place"][:, 0] for batch in _take(store, 200, batch_size=8)])
    # 1,600 draws of 5 cases, shuffled without replacement in a list of 4,100.
    assert np.abs(np.bincount(cases.astype(int)) / 1600 - 0.2).max() < 0.04


def test_bad_arguments_are_refused(store):
    with pytest.raises(ValueError, match="no cases"):
        stream(store, [], CONFIG, 8, 0)
    with pytest.raises(ValueError, match="shared evenly by 3 hosts"):
        stream(store, store.cases, CONFIG, 8, 0, hosts=3)


def test_worker_processes_end_with_their_parent_and_by_no_signal(store):
    batches = stream(store, store.cases, CONFIG, batch_size=8, seed=1, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        assert worker.pid is not None
        os.kill(worker.pid, number)
    for _ in range(20):  # more than are made ahead
        next(batches)
    batches.close()
    assert not worker.is_alive()


_PARENT = """
import multiprocessing, sys, time
from penn_jax.config import PatchConfig
from penn_jax.data.loader import stream
from penn_jax.data.store import Store

if __name__ == "__main__":
    store = Store(sys.argv[1])
    batches = stream(store, store.cases, PatchConfig((16, 16)), 2, 0, workers=1)
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(600)
"""


def test_worker_processes_of_a_killed_run_end(store, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    command = [sys.executable, str(script), str(store.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while _runs(worker):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(process: int) -> bool:
    """Whether a process is there and no zombie, which nobody may be left to fetch."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
