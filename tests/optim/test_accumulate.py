"""A batch in parts has the loss and the gradient of the batch as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from penn_jax.config import Config, ModelConfig, OptimConfig, PatchConfig, TrainConfig
from penn_jax.model.network import Network, initialise
from penn_jax.optim.accumulate import accumulated
from penn_jax.optim.parallel import compile_step
from penn_jax.optim.sgd import build_optimiser
from penn_jax.optim.step import build_step, create_state
from penn_jax.pretrain import restoration_objective
from penn_jax.train import segmentation_objective

KEY = jax.random.key(3)
PARTS = 4
BATCH = 32


def _config(norm):
    return Config(
        patches=PatchConfig(size=(16, 16)),
        model=ModelConfig(channels=(4, 4), blocks=1, dropout=0.2, deep_supervision=True, norm=norm),
        optim=OptimConfig(learning_rate=0.05, average=0.9),
        train=TrainConfig(batch_size=BATCH, accumulate=PARTS),
    )


def _batch(number=0):
    generator = np.random.default_rng(number)
    label = generator.integers(0, 2, (BATCH, 16, 16)).astype(np.uint8)
    label[:12, :8] = 255  # the parts differ in voxels that count: a mean of means would be wrong
    image = label[..., None] + generator.normal(size=(BATCH, 16, 16, 1))
    index = np.arange(BATCH, dtype=np.int64) + BATCH * number
    return {"image": image.astype(np.float32), "label": label, "index": index}


def _in_parts(batch):
    return jax.tree.map(lambda x: x.reshape(PARTS, -1, *x.shape[1:]), batch)


def _objective(config, task, axis=None):
    if task == "segmentation":
        return segmentation_objective(Network(config.model, 2, axis), config, KEY)
    return restoration_objective(Network(config.model, 1, axis), config, KEY)


@pytest.mark.parametrize("task", ["segmentation", "restoration"])
def test_parts_have_the_gradient_of_the_whole(task):
    config = _config("group")  # its statistics are those of a sample: nothing depends on parts
    objective = _objective(config, task)
    variables = initialise(Network(config.model, 2 if task == "segmentation" else 1), KEY, 1, 2)

    def run(parts, batch):
        gradient = jax.jit(accumulated(objective, parts), static_argnums=3)
        return gradient(variables["params"], {}, batch, lambda tree: tree)

    (loss, (_, metrics)), expected = run(1, _batch())
    (other, (_, others)), found = run(PARTS, _in_parts(_batch()))
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-5)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * largest)


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_parts_are_the_same_on_four_devices_as_on_one(kind):
    config = _config("batch")  # of each part, over all devices

    def train(kind, devices):
        optimiser = build_optimiser(config.optim)
        compiled = compile_step(
            lambda axis: build_step(
                _objective(config, "segmentation", axis), optimiser, 0.9, axis, PARTS
            ),
            kind,
            jax.devices()[:devices],
            PARTS,
        )
        variables = initialise(Network(config.model, 2), KEY, 1, 2)
        state = compiled.spread(
            create_state(variables["params"], variables["batch_stats"], optimiser)
        )
        for number in range(5):
            state, _ = compiled.step(state, compiled.place(_batch(number)), np.float32(0.3))
        return compiled.gather(state)

    expected, found = train("jit", 1), train(kind, 4)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
