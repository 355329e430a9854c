"""One step on one device, by jit on four and by pmap on four: the same training."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from penn_jax.config import Config, ModelConfig, OptimConfig, PatchConfig, TrainConfig
from penn_jax.model.network import Network, initialise
from penn_jax.optim.parallel import compile_step
from penn_jax.optim.sgd import build_optimiser
from penn_jax.optim.step import build_step, create_state, prediction_variables
from penn_jax.train import segmentation_objective

CONFIG = Config(
    patches=PatchConfig(size=(16, 16)),
    model=ModelConfig(channels=(8, 8, 8), blocks=1, dropout=0.2, deep_supervision=True),
    # Equal to 3e-7 but where rounding decides on which side of its kink a ReLU is: that came once
    # in six at a rate of 0.05, never in six at this one.
    optim=OptimConfig(learning_rate=0.02, average=0.9),
    train=TrainConfig(batch_size=8),
)
KEY = jax.random.key(3)


def _batch(number):
    generator = np.random.default_rng(number)
    label = generator.integers(0, 2, (8, 16, 16)).astype(np.uint8)
    label[0, :8] = 255
    image = label[..., None] + generator.normal(size=(8, 16, 16, 1))
    return {
        "image": image.astype(np.float32),
        "label": label,
        "index": np.arange(8, dtype=np.int64) + 8 * number,
    }


def _optimiser():
    return build_optimiser(CONFIG.optim)


def _state(config=CONFIG):
    variables = initialise(Network(config.model, 2), KEY, 1, 2)
    return create_state(variables["params"], variables.get("batch_stats", {}), _optimiser())


def _compiled(kind, devices, config=CONFIG, parts=1):
    def build(axis):
        objective = segmentation_objective(Network(config.model, 2, axis), config, KEY)
        return build_step(objective, _optimiser(), config.optim.average, axis, parts)

    return compile_step(build, kind, jax.devices()[:devices], parts)


def _run(kind, devices, steps=20, config=CONFIG, parts=1):
    compiled = _compiled(kind, devices, config, parts)
    state = compiled.spread(_state(config))
    losses = []
    for number in range(steps):
        state, metrics = compiled.step(state, compiled.place(_batch(number)), np.float32(0.3))
        losses.append(float(compiled.gather(metrics)["loss"]))
    return compiled.gather(state), losses


@pytest.fixture(scope="module")
def one_device():
    return _run("jit", 1)


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_four_devices_train_as_one(one_device, kind):
    expected, losses = one_device
    state, others = _run(kind, 4)
    np.testing.assert_allclose(others, losses, atol=1e-5)
    for tree in ("params", "batch_stats", "average", "optimiser"):
        for a, b in zip(
            jax.tree.leaves(getattr(expected, tree)),
            jax.tree.leaves(getattr(state, tree)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    assert losses[-1] < losses[0]  # it did train


HALF = replace(CONFIG, model=replace(CONFIG.model, precision="bfloat16", norm="group"))
"""With a norm that does not depend on which samples pass at once."""


@pytest.fixture(scope="module")
def in_float32():
    return _run("jit", 1, config=replace(HALF, model=replace(HALF.model, precision="float32")))[1]


@pytest.mark.parametrize(
    ("kind", "devices", "parts"), [("jit", 1, 1), ("jit", 4, 2), ("pmap", 4, 1), ("pmap", 4, 2)]
)
def test_bfloat16_trains_as_float32_does(in_float32, kind, devices, parts):
    state, losses = _run(kind, devices, config=HALF, parts=parts)
    # Eight bits of mantissa: a feature is wrong by up to 1 / 256, the loss by what is left of that.
    np.testing.assert_allclose(losses, in_float32, rtol=0.01)
    assert losses != in_float32
    assert losses[-1] < losses[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_the_second_step_does_not_compile_again(kind):
    compiled = _compiled(kind, 4)
    state = compiled.spread(_state())
    traced = []

    def count(name, *_, **__):
        if name == "/jax/core/compile/jaxpr_trace_duration":
            traced.append(name)

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        state, _ = compiled.step(state, compiled.place(_batch(0)), np.float32(0.1))
        assert traced  # the first step does compile, and this is how it shows
        traced.clear()
        for number in (1, 2):
            state, metrics = compiled.step(state, compiled.place(_batch(number)), np.float32(0.2))
        jax.block_until_ready(metrics)
    finally:
        jax.monitoring.clear_event_listeners()
    assert traced == []


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    compiled = _compiled("jit", 1)
    state, _ = compiled.step(compiled.spread(_state()), compiled.place(_batch(0)), np.float32(0.3))
    before = jax.tree.map(np.array, (state.params, state.batch_stats, state.average))
    broken = _batch(1)
    broken["image"][3, 2, 2] = np.nan
    state, metrics = compiled.step(state, compiled.place(broken), np.float32(0.3))
    assert int(metrics["skipped_in_a_row"]) == int(metrics["skipped"]) == 1
    for a, b in zip(
        jax.tree.leaves(before),
        jax.tree.leaves((state.params, state.batch_stats, state.average)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    state, metrics = compiled.step(state, compiled.place(_batch(2)), np.float32(0.3))
    assert int(metrics["skipped_in_a_row"]) == 0
    assert int(metrics["skipped"]) == 1
    assert int(state.step) == 3


def test_prediction_uses_the_average_or_the_weights(one_device):
    state, _ = one_device
    averaged = prediction_variables(state, 0.9)
    plain = prediction_variables(state, 0.0)
    assert averaged.keys() == plain.keys() == {"params", "batch_stats"}
    difference = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), averaged, plain)
    assert max(jax.tree.leaves(difference)) > 1e-5
    for a, b in zip(jax.tree.leaves(plain["params"]), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
