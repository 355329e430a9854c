"""Checkpoints: what is kept, what comes back, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from penn_jax.config import OptimConfig
from penn_jax.optim.checkpoint import Checkpoints
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


def test_state_model_and_account_come_back_exactly(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    _save(checkpoints, 7, 0.5, value=1.25)
    checkpoints.close()
    again = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert again.latest() == 7
    expected, restored = _state(1.25), again.restore_state(7, _state(0.0))
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    model = again.restore_model(7)
    np.testing.assert_array_equal(model["params"]["layer"]["kernel"], np.full((2, 3), 1.25))
    np.testing.assert_array_equal(model["batch_stats"]["norm"]["mean"], [0, 1, 2])
    assert again.restore_account(7) == {"seconds": 3.5}


def test_the_latest_two_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step, score in ((1, 0.3), (2, 0.9), (3, 0.5), (4, None), (5, 0.6)):
        _save(checkpoints, step, score)
    checkpoints.close()
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {2, 4, 5}
    again = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert (again.latest(), again.best()) == (5, 2)


def test_without_a_score_the_newest_is_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        _save(checkpoints, step, None)
    checkpoints.close()
    assert Checkpoints(tmp_path / "checkpoints", read_only=True).best() == 3


def test_another_shape_and_a_damaged_step_are_refused_in_one_line(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    _save(checkpoints, 1, 0.1)
    checkpoints.close()
    again = Checkpoints(tmp_path / "checkpoints", read_only=True)
    with pytest.raises(InputError, match=r"'bias'\] is of shape \(3,\), expected of shape \(4,\)"):
        again.restore_state(1, _state(width=4))
    for file in (tmp_path / "checkpoints" / "1" / "model").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match="cannot be restored"):
        again.restore_model(1)


def test_no_checkpoints_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no checkpoints"):
        Checkpoints(tmp_path / "nothing", read_only=True)
