"""Times on paper, against sums done by hand."""

import math

import pytest

from penn_jax.roofline import (
    CHIPS,
    SCALES,
    Chip,
    Collective,
    collective_seconds,
    grid_of,
    weak_scaling,
)

# 100 operations, 10 bytes of memory and 1 byte of a link a second.
CHIP = Chip(flops=100.0, memory=1000, bandwidth=10.0, link=1.0, axes=2, clock=1.0, most=256)


def test_an_all_reduce_goes_round_the_ring_twice():
    # Hand calculation: 2 passes of 3/4 of 8 bytes at 2 bytes a second; 2 passes of (1 + 1) hops for
    # each of 5 operations.
    seconds = collective_seconds([Collective("all-reduce", 5, 8)], CHIP, (2, 2))
    assert seconds == pytest.approx(2 * 0.75 * 8 / 2 + 2 * 5 * 2e-6, rel=1e-12)
    half = collective_seconds([Collective("all-gather", 5, 8)], CHIP, (2, 2))
    assert half == pytest.approx(seconds / 2, rel=1e-12)


def test_rings_along_the_axes_move_as_many_bytes_as_one_through_all_chips():
    # Scatter along x, then the quarter along y, and back: by hand, for 16 bytes on 4 × 8 chips.
    scattered = 16 * (3 / 4) + 16 / 4 * (7 / 8)
    seconds = collective_seconds([Collective("all-reduce", 0, 16)], CHIP, (4, 8))
    assert seconds == pytest.approx(2 * scattered / 2, rel=1e-12)


def test_one_device_waits_for_nobody():
    assert collective_seconds([Collective("all-reduce", 3, 10**9)], CHIP, (1, 1)) == 0.0


@pytest.mark.parametrize(
    ("devices", "axes", "grid"),
    [(1, 2, (1, 1)), (8, 2, (2, 4)), (256, 2, (16, 16)), (128, 3, (4, 4, 8)), (2, 3, (1, 1, 2))],
)
def test_grids_are_as_cubic_as_they_can_be(devices, axes, grid):
    assert grid_of(devices, axes) == grid
    assert math.prod(grid) == devices


def test_weak_scaling_by_hand():
    # Without latency to speak of: 4 bytes, n devices, 2 (n - 1) / n · 4 / 2 s beside 3 s of work.
    table = weak_scaling(3.0, [Collective("all-reduce", 0, 4)], CHIP)
    assert [row["devices"] for row in table] == list(SCALES) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert table[0] == {"devices": 1, "exposed": 1.0, "hidden": 1.0}
    assert table[1]["exposed"] == pytest.approx(3 / (3 + 2), rel=1e-12)
    assert table[1]["hidden"] == 1.0
    assert table[2] == pytest.approx({"devices": 4, "exposed": 3 / 6, "hidden": 1.0}, rel=1e-12)
    assert table[3]["hidden"] == pytest.approx(3 / 3.5, rel=1e-12)


def test_the_peaks_are_those_of_the_matrix_units():
    # Cells: two cores of four units (v4, v5p), four units (v5e, v6e); each multiplies and adds.
    cells = {"v4": 8 * 128**2, "v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 4 * 256**2}
    for name, count in cells.items():
        assert CHIPS[name].flops == pytest.approx(2 * count * CHIPS[name].clock, rel=0.005)
