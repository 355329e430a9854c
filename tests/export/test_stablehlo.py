"""The StableHLO program: the numbers of JAX, for any batch and size, read back from bytes."""

from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest

from penn_jax.config import ModelConfig
from penn_jax.export.stablehlo import PLATFORMS, stablehlo_forward, to_stablehlo
from penn_jax.model.network import Network
from penn_jax.types import InputError


def test_logits_are_those_of_jax(case):
    program = jax.export.deserialize(bytearray(to_stablehlo(case.variables, *case[:4])))
    assert program.platforms == PLATFORMS
    np.testing.assert_allclose(program.call(case.image), case.logits, rtol=0, atol=1e-4)


def test_one_program_for_any_batch_and_size_and_the_mean_over_mirrorings(drawn):
    config = ModelConfig(channels=(4, 6), blocks=1)
    network = Network(config, classes=2)
    variables = drawn(network, channels=1, dimensions=2)
    program = to_stablehlo(variables, config, 2, 1, 2)
    apply = jax.jit(network.apply)
    plain, mirrored = (stablehlo_forward(program, Path("p"), 2, m) for m in (False, True))
    for shape in [(1, 4, 8, 1), (3, 12, 4, 1)]:
        image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        each = [
            np.flip(jax.nn.softmax(apply(variables, np.flip(image, flip))[0]), flip)
            for flip in [(), (1,), (2,), (1, 2)]
        ]
        np.testing.assert_allclose(plain(image), each[0], atol=1e-5)
        np.testing.assert_allclose(mirrored(image), np.mean(each, axis=0), atol=1e-5)


def test_other_bytes_and_other_devices_are_told(monkeypatch, drawn):
    with pytest.raises(InputError, match=r"p: cannot be read .* a program of penn export"):
        stablehlo_forward(b"nothing of the kind", Path("p"), 2, False)
    config = ModelConfig(channels=(2,), blocks=1)
    variables = drawn(Network(config, 2), channels=1, dimensions=2)
    program = to_stablehlo(variables, config, 2, 1, 2)
    monkeypatch.setattr(jax, "default_backend", lambda: "abacus")
    with pytest.raises(InputError, match="p: is for cpu, cuda, tpu, expected abacus"):
        stablehlo_forward(program, Path("p"), 2, False)
