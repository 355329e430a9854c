"""Run by test_hosts.py as each of two processes: PORT NUMBER STORE FOLDER."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from penn_jax import together
from penn_jax.config import Config, ModelConfig, PatchConfig
from penn_jax.data.store import Store
from penn_jax.distributed import joined
from penn_jax.model.network import Network, initialise
from penn_jax.task import model_card
from penn_jax.train import case_counts
from penn_jax.types import InputError

CONFIG = Config(
    patches=PatchConfig(size=(16, 16)), model=ModelConfig(stem=2, channels=(4,), blocks=1)
)


def main(port: str, number: int, data: str, folder: Path) -> None:
    with joined(f"127.0.0.1:{port}", 2, number):
        # Whole numbers of 64 bits, which jax has not.
        large = np.array([[2**40 + number, -1]], np.int64)
        np.testing.assert_array_equal(together.gathered(large), [[[2**40, -1]], [[2**40 + 1, -1]]])
        assert together.summed(2**64 - 1 if number else 5) == 4  # modulo 2⁶⁴

        # Process 0's clock, any process's signal, two steps late unless they are waited for.
        agree = together.Agreement(7.0)
        mine = 100.0 if number else 1.0
        assert agree(mine, None) == (7.0, None)
        assert agree(2 * mine, 15 if number else None) == (7.0, None)
        assert agree(3 * mine, None) == (1.0, None)
        assert agree(4 * mine, None) == (2.0, 15)
        assert agree(5 * mine, 2, wait=True) == (5.0, 2)

        # An odd number of cases, shared: the counts that one process has.
        store = Store(data)
        cases, card = store.cases[:3], model_card(store, 0, "segmentation")
        variables = initialise(Network(CONFIG.model, len(card["labels"])), jax.random.key(0), 1, 2)
        counts = case_counts(store, cases, CONFIG, card)(variables)
        assert [*together.share(3)] == ([1] if number else [0, 2])
        for case in cases:
            expected = _counts_alone(store, case, card, variables)
            np.testing.assert_array_equal(counts[case].array(), expected)

        # A folder of its own each.
        own = folder / str(number)
        own.mkdir()
        together._SEEN_WITHIN = 0.5
        with pytest.raises(InputError, match="process 1 does not see what process 0 writes there"):
            together._check_shared(own)
        assert [*own.iterdir()] == []
        together._check_shared(folder)

        together._check_same(CONFIG)
        other = Config(name="other") if number else CONFIG
        with pytest.raises(InputError, match="process 1 has another config than process 0"):
            together._check_same(other)
    print("as it should be")


def _counts_alone(store, case, card, variables):
    """By the parts that ``case_counts`` is made of, without anyone else."""
    from penn_jax.engine import bucketed
    from penn_jax.predict.case import most_likely
    from penn_jax.predict.dense import predict_frames
    from penn_jax.report.metrics import confusion
    from penn_jax.task import tiling

    box = tuple(slice(0, size) for size in store.frames_shape(case)[:-1])
    evaluate = bucketed(CONFIG.model, len(card["labels"]))
    predicted = predict_frames(
        lambda tiles: most_likely(evaluate(variables, tiles)),
        store.image(case, box),
        tiling(CONFIG, card),
    )
    return confusion(predicted, store.labels(case, box), [1]).array()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
