"""What a run takes over from another run."""

import numpy as np
import pytest

from penn_jax import transfer
from penn_jax.config import Config
from penn_jax.run import ModelCard
from penn_jax.transfer import load_parts, loaded_parts
from penn_jax.types import InputError

CARD = ModelCard(
    channels=["T1"],
    labels={"background": 0},
    label_values=[0],
    dimensions=2,
    spacing=None,
    data_hash="aa",
    split_hash="bb",
    fold=0,
    task="segmentation",
)
LAYERS = ("reduce_0", "conv_0", "expand_1", "deconv_0", "head_0")


@pytest.fixture
def fresh():
    return {
        "params": {name: {"kernel": np.zeros((2, 3))} for name in LAYERS},
        "batch_stats": {"conv_0": {"mean": np.zeros(3)}, "deconv_0": {"mean": np.zeros(3)}},
    }


@pytest.fixture
def other(fresh, monkeypatch):
    variables = {
        collection: {
            layer: {name: np.ones_like(leaf) for name, leaf in leaves.items()}
            for layer, leaves in layers.items()
        }
        for collection, layers in fresh.items()
    }
    variables["params"]["head_0"]["kernel"] = np.ones(9)  # of other classes
    monkeypatch.setattr(transfer, "load_model", lambda _, newest: (Config(), CARD, variables))
    return variables


@pytest.mark.parametrize(
    ("parts", "taken"),
    [
        ("network", {"reduce_0", "conv_0", "expand_1", "deconv_0"}),
        ("encoder", {"reduce_0", "conv_0"}),
    ],
)
def test_parts_and_their_statistics_are_loaded_and_told(tmp_path, fresh, other, parts, taken):
    variables, told = load_parts(tmp_path, fresh, parts, CARD)
    for layers in variables.values():
        for layer, leaves in layers.items():
            for leaf in leaves.values():
                assert (leaf == float(layer in taken)).all()
    pretrained = loaded_parts(fresh["params"], parts)
    assert {layer for layer, leaves in pretrained.items() if leaves["kernel"]} == taken
    # 6 values a kernel and 3 a mean.
    values = 6 * len(taken) + 3 * len(taken & {"conv_0", "deconv_0"})
    new = [layer for layer in LAYERS if layer not in taken]
    assert f"loaded {len(taken)} layers ({values} values)" in told
    assert set(told.split("new are ")[1].split(" (")[0].split(", ")) == set(new)


def test_a_part_of_another_shape_or_missing_is_named(tmp_path, fresh, other):
    other["params"]["conv_0"]["kernel"] = np.ones((2, 5))
    with pytest.raises(InputError, match=r"conv_0.*\(2, 5\), expected shape \(2, 3\)"):
        load_parts(tmp_path, fresh, "encoder", CARD)
    del other["params"]["conv_0"]
    with pytest.raises(InputError, match=r"conv_0.* is nothing, expected shape \(2, 3\)"):
        load_parts(tmp_path, fresh, "network", CARD)


def test_a_run_that_may_have_seen_the_validation_cases_is_refused(tmp_path, fresh, other):
    with pytest.raises(InputError, match=r"another split of these scans \(fold 0\).*fold 1"):
        load_parts(tmp_path, fresh, "network", CARD | {"fold": 1, "split_hash": "cc"})
    elsewhere = CARD | {"data_hash": "dd", "split_hash": "cc"}
    assert load_parts(tmp_path, fresh, "network", elsewhere)
