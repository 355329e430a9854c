"""What evaluates a network: which engine, how much memory."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from penn_jax import engine
from penn_jax.config import Config, ModelConfig
from penn_jax.engine import Model, compiled, model_forward
from penn_jax.export import onnx
from penn_jax.model.network import Network, evaluation_bytes, initialise


@pytest.mark.parametrize(
    ("device", "installed", "precision", "expected"),
    [
        ("cpu", True, "float32", "onnxruntime"),
        ("cpu", False, "float32", "jax"),
        ("cpu", True, "bfloat16", "jax"),  # ONNX Runtime would give other labels: float32's
        ("gpu", True, "float32", "jax"),
    ],
)
def test_auto_is_onnxruntime_where_it_is_faster_and_gives_the_same(
    monkeypatch, device, installed, precision, expected
):
    monkeypatch.setattr(jax, "default_backend", lambda: device)
    monkeypatch.setattr(onnx, "installed", lambda: installed)
    monkeypatch.setattr(onnx, "onnx_forward", lambda *_: "onnxruntime")
    monkeypatch.setattr(engine, "probability_forward", lambda *_: "jax")
    config = replace(Config(), model=ModelConfig(precision=precision))
    card = {"labels": {"background": 0, "a": 1}, "channels": ["T1"], "dimensions": 2}
    model = Model("run", config, card, {})
    assert model_forward(model, mirror=False) == expected
    assert model_forward(model, mirror=False, engine="jax") == "jax"
    assert model_forward(model, mirror=False, engine="onnxruntime") == "onnxruntime"


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("ends", [False, True])
def test_mirroring_takes_no_more_memory_than_is_stated(dimensions, ends):
    model, classes = ModelConfig(stem=1, channels=(16, 24), blocks=1, norm="none"), 2
    shapes = jax.eval_shape(
        lambda: initialise(Network(model, classes), jax.random.key(0), 1, dimensions)
    )
    size = (64, 64) if dimensions == 2 else (16, 16, 16)
    tiles = jax.ShapeDtypeStruct((2, *size, 1), np.float32)
    end = jax.ShapeDtypeStruct((dimensions,), np.int32) if ends else None
    plan = compiled(model, classes, True).lower(shapes, tiles, end).compile().memory_analysis()
    voxel = (plan.temp_size_in_bytes + plan.output_size_in_bytes) / np.prod(tiles.shape)
    # Unrolled, as XLA plans it, 660 bytes a voxel in 2-D and 1237 in 3-D; 264 are stated.
    assert voxel <= 1.1 * evaluation_bytes(model, dimensions, 1, classes)
