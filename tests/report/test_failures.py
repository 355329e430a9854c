"""What is told of cases that a network fails on."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from penn_jax.report.failures import (
    Limits,
    Result,
    Traits,
    causes,
    limits,
    measure_traits,
    rank_correlations,
    worst,
)

NAN = math.nan
BORDER = "at the border of the image"
USUAL = Limits(Traits(100.0, 1.0, 0.0), Traits(1000.0, 5.0, 0.2))


def scan(inside=3.0, spread=1.0):
    """Two frames of 40×40: noise of variance spread², a bright square of 10×10 in one of them."""
    generator = np.random.default_rng(0)
    labels = np.zeros((2, 40, 40), np.uint8)
    labels[1, 10:20, 10:20] = 1
    image = generator.normal(0.0, spread, (2, 40, 40)) + inside * labels
    return image[..., None].astype(np.float32), labels


def test_traits_of_a_square():
    image, labels = scan()
    traits = measure_traits(image, labels, voxel_volume=4.0)
    assert traits.volume == 400.0  # 100 voxels of 4 mm³
    assert traits.border == 0.0
    # 3 standard deviations apart, up to the noise of 100 voxels: 3 ± 0.3.
    assert traits.contrast == pytest.approx(3.0, abs=0.3)


def test_contrast_knows_no_unit_and_takes_the_best_channel():
    image, labels = scan()
    plain = measure_traits(image, labels, 1.0).contrast
    assert measure_traits(7 * image - 5, labels, 1.0).contrast == pytest.approx(plain, rel=1e-4)
    both = np.concatenate([np.zeros_like(image), image], axis=-1)
    assert measure_traits(both, labels, 1.0).contrast == pytest.approx(plain)


def test_the_rim_leaves_out_other_frames_ignored_voxels_and_other_classes():
    image, labels = scan()
    plain = measure_traits(image, labels, 1.0).contrast
    image[0] += 100  # the neighbouring slice
    labels[1, 20:25, 10:20], image[1, 20:25, 10:20] = 255, 1000.0
    assert measure_traits(image, labels, 1.0).contrast == pytest.approx(plain, abs=0.3)


def test_the_border_is_two_voxels_wide():
    labels = np.zeros((1, 20, 20), np.uint8)
    labels[0, :4, 5:10] = 2  # rows 0 and 1 of 4 are border
    image = np.random.default_rng(0).normal(size=(1, 20, 20, 1)).astype(np.float32)
    assert measure_traits(image, labels, 1.0).border == 0.5


def test_no_foreground_has_no_traits():
    image, labels = scan()
    assert all(math.isnan(value) for value in measure_traits(image, labels * 0, 1.0))
    full = measure_traits(image, labels * 0 + 1, 1.0)  # nothing around it
    assert math.isnan(full.contrast)


def test_limits_are_quantiles_of_what_is_known():
    training = [Traits(float(n), NAN, 0.0) for n in range(11)] + [Traits(NAN, NAN, NAN)]
    low, high = limits(training)
    assert (low.volume, high.volume) == (1.0, 9.0)  # of 0 … 10, by hand
    assert math.isnan(low.contrast)
    assert all(math.isnan(value) for side in limits([]) for value in side)


def test_the_worst_tenth_between_three_and_twenty():
    assert worst({f"c{n:03}": n / 300 for n in range(300)}) == [f"c{n:03}" for n in range(20)]
    assert len(worst({f"c{n}": 0.5 for n in range(60)})) == 6
    assert worst({"a": 0.9, "b": NAN, "c": 0.1}) == ["c", "a"]
    assert worst({}) == []


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (Result(0.0, 0.0, 0.0, 0.0, True, Traits(NAN, NAN, NAN)), ["found where there is nothing"]),
        (Result(0.0, 0.0, 0.0, 0.0, False, Traits(50.0, 2.0, 0.0)), ["nothing found", "small"]),
        (Result(0.0, 0.0, 0.0, 0.0, True, Traits(500.0, 2.0, 0.0)), ["found elsewhere"]),
        (
            Result(0.5, 0.9, 0.4, 0.5, True, Traits(2000.0, 0.5, 0.3)),
            ["too little found (recall 40 %)", "large", "low contrast", BORDER],
        ),
        (Result(0.5, 0.4, 0.9, 0.5, True, Traits(500.0, 2.0, 0.1)),
         ["too much found (precision 40 %)"]),
        (Result(0.3, 0.3, 0.3, 0.9, True, Traits(500.0, 2.0, 0.1)),
         ["classes confused (Dice 90 % taken as one)"]),
        (Result(0.8, 0.8, 0.8, 0.8, True, Traits(500.0, NAN, 0.1)), []),
    ],
)  # fmt: skip
def test_causes(result, told):
    assert causes(result, USUAL) == told


def test_nothing_is_called_unusual_where_nothing_is_known():
    unknown = limits([])
    assert causes(Result(0.5, 0.5, 0.5, 0.5, True, Traits(1.0, 0.1, 1.0)), unknown) == []


def test_rank_correlations_are_those_of_scipy():
    generator = np.random.default_rng(3)
    dice = generator.uniform(size=30)
    volume = np.round(dice * 10 + generator.normal(size=30))  # with ties
    results = [
        Result(d, d, d, d, True, Traits(float(v), NAN if n < 28 else 1.0, 0.0))
        for n, (d, v) in enumerate(zip(dice, volume, strict=True))
    ]
    found = rank_correlations(results)
    assert found["volume"][0] == pytest.approx(spearmanr(volume, dice)[0])
    assert found["volume"][1] == 30
    assert math.isnan(found["contrast"][0])  # two cases only
    assert found["contrast"][1] == 2
    assert math.isnan(found["border"][0])  # all equal
    assert rank_correlations([])["volume"][1] == 0
