"""The PyTorch network: the numbers of JAX; files that only PyTorch reads, without pickles."""

import io
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from penn_jax.config import ModelConfig
from penn_jax.export.torch import checkpoint_bytes, read_checkpoint, to_torch
from penn_jax.export.weights import torch_state
from penn_jax.model.network import Network
from penn_jax.types import InputError


def test_logits_are_those_of_jax(case):
    network = to_torch(case.variables, *case[:4])
    with torch.inference_mode():
        logits = network(torch.from_numpy(np.moveaxis(case.image, -1, 1).copy())).numpy()
    assert np.abs(case.logits).max() > 0.2
    np.testing.assert_allclose(np.moveaxis(logits, 1, -1), case.logits, rtol=0, atol=1e-4)


def test_every_weight_arrives_under_the_name_of_the_jax_layer(case):
    state = to_torch(case.variables, *case[:4]).state_dict()
    named = torch_state(case.variables)
    # The count of batches is PyTorch's own; JAX keeps none.
    assert {name for name in state if not name.endswith("num_batches_tracked")} == set(named)
    assert all(np.array_equal(state[name].numpy(), value) for name, value in named.items())
    assert np.array_equal(
        state["head_0.weight"].numpy(),
        np.einsum("...io->io...", case.variables["params"]["head_0"]["kernel"]),
    )


def test_scores_of_every_grid_while_training_are_those_of_jax():
    # Group normalisation is the same while training and after, so that both can be compared.
    config = ModelConfig(channels=(4, 6, 8), blocks=1, norm="group", deep_supervision=True)
    network, rng = Network(config, 3), np.random.default_rng(0)
    image = rng.normal(size=(2, 16, 8, 1)).astype(np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    expected = jax.jit(partial(network.apply, train=True))(variables, image)
    twin = to_torch(variables, config, 3, 1, 2)
    with torch.inference_mode():
        x = torch.from_numpy(np.moveaxis(image, -1, 1).copy())
        found, alone = twin.train()(x), twin.eval()(x)
    assert [tuple(scores.shape) for scores in found] == [(2, 3, 16, 8), (2, 3, 8, 4)]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.moveaxis(ours.numpy(), 1, -1), theirs, atol=1e-4)
    np.testing.assert_array_equal(alone.numpy(), found[0].numpy())


def test_a_checkpoint_comes_back():
    state = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    found = read_checkpoint(checkpoint_bytes(state), Path("w.pt"))
    np.testing.assert_array_equal(found["a.weight"], state["a.weight"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.nn.Linear(2, 2), "cannot be read"),  # a pickle of a class: never run
        ([1, 2], "holds a list"),
        ({"epoch": 3, "model": {}}, "'epoch' is a int"),
        ({"a": torch.ones(2, dtype=torch.bfloat16)}, "a is bfloat16"),
    ],
)
def test_files_that_are_no_state_dict_are_refused(content, said):
    file = io.BytesIO()
    torch.save(content, file)
    with pytest.raises(InputError, match=rf"w\.pt: .*{said}"):
        read_checkpoint(file.getvalue(), Path("w.pt"))


def test_bytes_that_are_no_file_of_pytorch_are_refused():
    with pytest.raises(InputError, match=r"w\.pt: cannot be read"):
        read_checkpoint(b"nothing of the kind", Path("w.pt"))
