"""The ONNX graph and its engine: the numbers of JAX, for any batch and size."""

import tracemalloc

import jax
import numpy as np
import onnxruntime
import pytest

from penn_jax.config import ModelConfig
from penn_jax.export import onnx as engine
from penn_jax.export.onnx import onnx_forward, to_onnx
from penn_jax.model.network import Network
from penn_jax.types import InputError


def _run(case, image):
    session = onnxruntime.InferenceSession(
        to_onnx(case.variables, *case[:4]).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    channels_first = np.ascontiguousarray(np.moveaxis(image, -1, 1))
    return [np.moveaxis(y, 1, -1) for y in session.run(None, {"image": channels_first})]


def _probabilities(logits):
    """Softmax in float64 NumPy."""
    shifted = np.exp(np.float64(logits) - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def test_logits_and_probabilities_are_those_of_jax(case):
    logits, probabilities = _run(case, case.image)
    np.testing.assert_allclose(logits, case.logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(probabilities, _probabilities(case.logits), rtol=0, atol=2e-5)


def test_engine_gives_probabilities_and_labels_of_jax(case):
    forward = onnx_forward(*case[:4], case.variables, mirror=False, threads=1)
    found = forward(case.image)
    expected = _probabilities(case.logits)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    decided = np.diff(np.sort(expected, axis=-1)[..., -2:])[..., 0] > 1e-4
    assert decided.mean() > 0.99
    np.testing.assert_array_equal(found.argmax(-1)[decided], expected.argmax(-1)[decided])


@pytest.mark.parametrize("shape", [(1, 8, 8, 1), (3, 12, 20, 1)], ids=str)
def test_one_graph_for_any_batch_and_size_and_the_mean_over_mirrorings(shape, drawn):
    config = ModelConfig(channels=(8, 12), blocks=1)
    network = Network(config, classes=2)
    variables = drawn(network, channels=1, dimensions=2)
    forward = onnx_forward(config, 2, 1, 2, variables, mirror=True)
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    apply = jax.jit(network.apply)
    expected = np.mean(
        [
            np.flip(_probabilities(np.asarray(apply(variables, np.flip(image, flip))[0])), flip)
            for flip in [(), (1,), (2,), (1, 2)]
        ],
        axis=0,
    )
    found = forward(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_mirroring_holds_the_sum_not_every_mirroring(drawn):
    config = ModelConfig(stem=1, channels=(2,), blocks=1)
    variables = drawn(Network(config, 8), channels=1, dimensions=3)
    image = np.zeros((1, 64, 64, 64, 1), np.float32)
    forward = onnx_forward(config, 8, 1, 3, variables, mirror=True)
    tracemalloc.start()
    result = forward(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The sum, the next mirroring's, their sum and its own copies; eight and their stack are 16.
    assert peak < 5 * result.nbytes


def test_a_missing_package_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnxruntime is not installed.*penn-jax\[onnx\]"):
        onnx_forward(ModelConfig(), 2, 1, 2, {}, mirror=False)
