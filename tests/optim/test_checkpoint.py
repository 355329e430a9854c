"""Checkpoints: what is kept, what comes back, what damage does, what is refused."""

import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from penn_jax.config import OptimConfig
from penn_jax.optim import checkpoint
from penn_jax.optim.checkpoint import Checkpoints, read_model
from penn_jax.optim.seal import damage
from penn_jax.optim.sgd import build_optimiser
from penn_jax.optim.step import create_state, prediction_variables
from penn_jax.types import InputError


def _state(value=1.0, width=3):
    params = {"layer": {"kernel": jnp.full((2, width), value), "bias": jnp.zeros(width)}}
    stats = {"norm": {"mean": jnp.arange(3.0)}}
    return create_state(params, stats, build_optimiser(OptimConfig()))


def _save(checkpoints, step, score, value=1.0):
    state = _state(value)
    model = prediction_variables(state, 0.9)
    checkpoints.save(step, model, state, {"seconds": step * 0.5}, score)


def _refuse(text):
    raise AssertionError(text)


def _open(folder):
    return Checkpoints(folder / "checkpoints", _refuse)


def _steps(folder):
    return {int(path.name) for path in (folder / "checkpoints").iterdir()}


def _assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_state_model_and_account_come_back_exactly(tmp_path):
    _save(_open(tmp_path), 7, 0.5, value=1.25)
    again = _open(tmp_path)
    assert again.latest() == 7
    _assert_equal(again.restore_state(7, _state(0.0)), _state(1.25))
    assert again.restore_account(7) == {"seconds": 3.5}
    model = read_model(tmp_path / "checkpoints", _refuse)
    np.testing.assert_array_equal(model["params"]["layer"]["kernel"], np.full((2, 3), 1.25))
    np.testing.assert_array_equal(model["batch_stats"]["norm"]["mean"], [0, 1, 2])


def test_the_latest_two_and_the_best_are_kept_also_by_a_resumed_run(tmp_path):
    checkpoints = _open(tmp_path)
    for step, score in ((1, 0.3), (2, 0.9), (3, 0.5)):
        _save(checkpoints, step, score, value=step)
    checkpoints = _open(tmp_path)
    for step, score in ((4, None), (5, 0.6)):
        _save(checkpoints, step, score, value=step)
    assert _steps(tmp_path) == {2, 4, 5}
    assert _open(tmp_path).latest() == 5
    model = read_model(tmp_path / "checkpoints", _refuse)
    assert model["params"]["layer"]["kernel"][0, 0] == 2.0
    model = read_model(tmp_path / "checkpoints", _refuse, newest=True)
    assert model["params"]["layer"]["kernel"][0, 0] == 5.0


def test_without_a_score_the_newest_is_the_best(tmp_path):
    checkpoints = _open(tmp_path)
    for step in (1, 2, 3):
        _save(checkpoints, step, None, value=step)
    model = read_model(tmp_path / "checkpoints", _refuse)
    assert model["params"]["layer"]["kernel"][0, 0] == 3.0


def _flip(path, rng):
    """Change one byte of a file to another, each file that is not empty equally likely."""
    file = rng.choice(sorted(f for f in path.rglob("*") if f.is_file() and f.stat().st_size))
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    file.write_bytes(content)


def test_any_changed_byte_is_found_and_the_step_before_is_used(tmp_path):
    checkpoints = _open(tmp_path)
    _save(checkpoints, 1, 0.9, value=1.0)
    _save(checkpoints, 2, 0.1, value=2.0)
    rng = random.Random(0)
    for number in range(40):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "checkpoints", folder / "checkpoints")
        _flip(folder / "checkpoints" / "2", rng)
        said = []
        damaged = Checkpoints(folder / "checkpoints", said.append)
        assert len(said) == 2
        assert "checkpoints/2: damaged" in said[0]
        assert "goes on from step 1" in said[1]
        assert damaged.latest() == 1
        _assert_equal(damaged.restore_state(1, _state(0.0)), _state(1.0))
        assert (folder / "damaged" / "2").is_dir()
        _save(damaged, 2, 0.1, value=2.0)  # the step can be made again
        assert damaged.latest() == 2


def test_every_kind_of_file_is_guarded(tmp_path):
    _save(_open(tmp_path), 1, None)
    step = tmp_path / "checkpoints" / "1"
    assert damage(step) is None
    for file in sorted(file for file in step.rglob("*") if file.is_file()):
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        assert damage(step) == f"{file.relative_to(step)} is not what was written"
        file.unlink()
        assert damage(step)
        file.write_bytes(content)
    assert damage(step) is None


def test_prediction_takes_the_next_best_of_a_damaged_model_and_writes_nothing(tmp_path):
    checkpoints = _open(tmp_path)
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.1)):
        _save(checkpoints, step, score, value=step)
    folder = tmp_path / "checkpoints"
    _flip(folder / "2" / "model", random.Random(1))
    before = sorted(tmp_path.rglob("*"))
    said = []
    model = read_model(folder, said.append)
    assert model["params"]["layer"]["kernel"][0, 0] == 3.0  # 1 was deleted: 3 and 2 were kept
    assert len(said) == 1
    assert sorted(tmp_path.rglob("*")) == before
    _flip(folder / "3" / "model", random.Random(1))
    with pytest.raises(InputError, match="no whole checkpoint"):
        read_model(folder, said.append)


def test_a_save_cut_off_counts_for_nothing(tmp_path):
    checkpoints = _open(tmp_path)
    _save(checkpoints, 1, None)
    _save(checkpoints, 2, None)
    folder = tmp_path / "checkpoints"
    (folder / "2").rename(folder / "2.partial")  # killed just before the last rename
    read_model(folder, _refuse)
    assert _open(tmp_path).latest() == 1
    assert _steps(tmp_path) == {1}


def test_a_step_without_its_seal_is_never_deleted(tmp_path):
    _save(_open(tmp_path), 1, None)
    (tmp_path / "checkpoints" / "1" / "seal.json").unlink()
    said = []
    with pytest.raises(InputError, match="no checkpoint is whole"):
        Checkpoints(tmp_path / "checkpoints", said.append)
    assert "seal.json is not what was written" in said[0]
    assert (tmp_path / "damaged" / "1" / "model").is_dir()


def test_a_step_that_is_there_is_not_touched_by_a_failing_save(tmp_path):
    checkpoints = _open(tmp_path)
    _save(checkpoints, 3, 0.5)
    with pytest.raises(InputError, match="cannot be written"):
        _save(checkpoints, 3, 0.5)
    assert damage(tmp_path / "checkpoints" / "3") is None
    assert _steps(tmp_path) == {3}


def test_the_damage_of_the_best_is_told_also_where_its_seal_is_hit(tmp_path):
    checkpoints = _open(tmp_path)
    for step, score in ((1, 0.9), (2, 0.1), (3, 0.2)):
        _save(checkpoints, step, score, value=step)
    seal = tmp_path / "checkpoints" / "1" / "seal.json"
    seal.write_text(seal.read_text().replace("0.9", "0.8"))
    said = []
    model = read_model(tmp_path / "checkpoints", said.append)
    assert model["params"]["layer"]["kernel"][0, 0] == 3.0
    assert len(said) == 1
    assert "checkpoints/1: damaged" in said[0]


def test_a_file_that_cannot_be_read_is_damage(tmp_path, monkeypatch):
    _save(_open(tmp_path), 1, 0.9)
    _save(_open(tmp_path), 2, 0.1)
    opened = Path.open

    def broken(path, *arguments, **options):
        if path.parts[-3:-1] == ("1", "model"):
            raise OSError(5, "Input/output error", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", broken)
    said = []
    assert Checkpoints(tmp_path / "checkpoints", said.append).latest() == 2
    assert "Input/output error" in said[0]


def test_a_step_replaced_while_it_is_read_is_no_damage(tmp_path, monkeypatch):
    checkpoints = _open(tmp_path)
    _save(checkpoints, 1, 0.5, value=1.0)
    checked = checkpoint.damage

    def train_on(path):
        if path.name == "1":
            _save(checkpoints, 2, 0.6, value=2.0)
            _save(checkpoints, 3, 0.7, value=3.0)  # deletes step 1
        return checked(path)

    monkeypatch.setattr(checkpoint, "damage", train_on)
    model = read_model(tmp_path / "checkpoints", _refuse)
    assert model["params"]["layer"]["kernel"][0, 0] == 3.0


def test_a_model_trained_on_several_devices_is_read_on_one(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    assert len(mesh.devices) == 4
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.device_put(_state(1.5), everywhere)
    _open(tmp_path).save(1, prediction_variables(state, 0.9), state, {}, None)
    code = (
        "import sys; from pathlib import Path; from penn_jax.optim.checkpoint import read_model\n"
        "model = read_model(Path(sys.argv[1]), print)\n"
        "print(model['params']['layer']['kernel'][0, 0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "checkpoints")],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) == 1.5


def test_another_shape_is_refused_naming_the_array_and_both_shapes(tmp_path):
    checkpoints = _open(tmp_path)
    _save(checkpoints, 1, 0.1)
    with pytest.raises(InputError, match=r"'bias'\] is of shape \(3,\), expected of shape \(4,\)"):
        checkpoints.restore_state(1, _state(width=4))


def test_no_checkpoints_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no checkpoints"):
        read_model(tmp_path / "nothing", _refuse)


def test_room_is_looked_for_before_anything_is_written(tmp_path, monkeypatch):
    checkpoints = _open(tmp_path)
    _save(checkpoints, 1, 0.5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(InputError, match=r"1\.0 MiB are free, 1\.0 MiB are needed"):
        _save(checkpoints, 2, 0.5)
    assert _steps(tmp_path) == {1}


def test_a_disk_that_takes_no_more_is_one_line_and_harms_nothing(tmp_path):
    checkpoints = _open(tmp_path)
    _save(checkpoints, 1, 0.5, value=1.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ, so that a file that grows past the limit is an error of its write.
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot be written .* go on with --resume"):
            _save(checkpoints, 2, 0.5, value=2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert _steps(tmp_path) == {1}
    assert damage(tmp_path / "checkpoints" / "1") is None
    _save(checkpoints, 2, 0.5, value=2.0)
    assert _open(tmp_path).latest() == 2
