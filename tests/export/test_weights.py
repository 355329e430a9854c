"""Weights to PyTorch's names and back: the identity, and every misfit named."""

from pathlib import Path

import jax
import numpy as np
import pytest

from penn_jax.export.weights import (
    jax_variables,
    read_safetensors,
    safetensors_bytes,
    torch_state,
)
from penn_jax.types import InputError


def test_there_and_back_is_the_identity_bit_for_bit(case):
    state = read_safetensors(safetensors_bytes(torch_state(case.variables)), Path("w"))
    found = jax_variables(state, case.variables, Path("w"))
    assert jax.tree.structure(found) == jax.tree.structure(case.variables)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(case.variables), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == np.ascontiguousarray(theirs).tobytes()


LIKE = {
    "params": {
        "conv_0": {"conv_0": {"kernel": np.zeros((3, 3, 2, 4), np.float32)}},
        "expand_1": {"kernel": np.zeros((2, 2, 5, 4), np.float32)},
    }
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conv_0.conv_0.weight": None}, r"conv_0\.conv_0\.weight is missing, .*\(4, 2, 3, 3\)"),
        ({"expand_1.weight": np.zeros((4, 5, 2, 2), np.float32)}, r"shape \(4, 5, .*\(5, 4, "),
        ({"expand_1.weight": np.zeros((5, 4, 2, 2))}, "expand_1.weight is float64"),
        ({"expand_1.weight": np.full((5, 4, 2, 2), np.nan, np.float32)}, "weight is not finite"),
        ({"tail.bias": np.zeros(3, np.float32)}, "tail.bias is of no layer"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, said):
    state = {k: v for k, v in (torch_state(LIKE) | change).items() if v is not None}
    with pytest.raises(InputError, match=f"tuned: .*{said}"):
        jax_variables(state, LIKE, Path("tuned"))


def test_the_counters_of_pytorch_are_no_misfit():
    state = torch_state(LIKE) | {"conv_0.norm_0.num_batches_tracked": np.ones((), np.int64)}
    assert jax_variables(state, LIKE, Path("tuned")).keys() == {"params"}


def test_a_file_cut_off_is_told():
    content = safetensors_bytes(torch_state(LIKE))
    for broken in (content[:-7], b"", b"nothing of the kind"):
        with pytest.raises(InputError, match="tuned: cannot be read"):
            read_safetensors(broken, Path("tuned"))
