"""Ranges of training cases and what is beyond them, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penn_jax.data.usual import unlike, usual_scans


def record(shape=(200, 180, 20), spacing=(1.0, 1.2, 4.0), code="RAS", axis=2, grey=(0, 20, 100)):
    low, middle, high = grey
    return {
        "shape": list(shape),
        "native_spacing": list(spacing),
        "orientation": code,
        "slice_axis": axis,
        "intensity": {"minimum": [low], "median": [middle], "percentile_99": [high]},
    }


TRAINING = [record(), record(shape=(240, 200, 20), spacing=(0.9, 1.0, 5.0), grey=(10, 60, 210))]


def test_ranges_by_hand():
    assert usual_scans(TRAINING) == {
        "cases": 2,
        "directions": [2],
        "between": [4.0, 5.0],
        "spacing": [[0.9, 1.0], [1.0, 1.2]],
        "extent": [[200.0, 216.0], [200.0, 216.0]],
        # 20 of 100 and 50 of 200.
        "grey": [[0.2, 0.25]],
    }


@pytest.mark.parametrize("case", TRAINING)
def test_nothing_is_said_of_the_training_cases(case):
    assert unlike(case, usual_scans(TRAINING), ["T1"]) == []


@given(
    factor=st.floats(0.01, 1e4),
    offset=st.floats(-100, 100),
    order=st.permutations(range(3)),
    flips=st.tuples(*[st.booleans()] * 3),
)
def test_unit_and_order_of_the_axes_do_not_matter(factor, offset, order, flips):
    shape, spacing, code = (
        [values[axis] for axis in order] for values in ((200, 180, 20), (1.0, 1.2, 4.0), "RAS")
    )
    opposite = {"R": "L", "A": "P", "S": "I"}
    code = [opposite[c] if flip else c for c, flip in zip(code, flips, strict=True)]
    grey = [factor * value + offset for value in (0, 21, 100)]
    turned = record(shape, spacing, "".join(code), order.index(2), grey)
    assert unlike(turned, usual_scans(TRAINING), ["T1"]) == []


@pytest.mark.parametrize(
    ("scan", "said"),
    [
        (
            record(grey=(0, 40, 100)),
            "a median of 40 % of the grey range of T1, 20 to 25 in training",
        ),
        (record(spacing=(1.0, 1.2, 8.0)), "slices 8 mm apart, 4 to 5 in training"),
        (
            record(shape=(100, 180, 20)),
            "an extent of 100 mm from right to left, 200 to 216 in training",
        ),
        (
            record(shape=(100, 180, 20), spacing=(2.0, 1.2, 4.0)),
            "voxels of 2 mm from right to left, 0.9 to 1 in training",
        ),
    ],
)
def test_what_is_beyond_by_more_than_a_tenth_is_told(scan, said):
    assert unlike(scan, usual_scans(TRAINING), ["T1"]) == [said]


def test_slices_cut_another_way_are_told_first():
    sagittal = record(shape=(20, 180, 200), spacing=(4.0, 1.2, 1.0), axis=0)
    said = unlike(sagittal, usual_scans(TRAINING), ["T1"])
    assert said[0] == "slices follow one another from right to left, foot to head in training"


def test_the_distance_of_a_single_slice_is_none():
    usual = usual_scans([record(shape=(200, 180, 1))])
    assert usual["between"] is None
    assert unlike(record(shape=(200, 180, 1), spacing=(1.0, 1.2, 50.0)), usual, ["T1"]) == []


def test_whole_volumes_have_three_axes_and_no_slices():
    usual = usual_scans([record(axis=None)])
    assert (usual["directions"], usual["between"]) == ([], None)
    assert usual["extent"] == [[200, 200], [216, 216], [80, 80]]
    said = unlike(record(shape=(200, 180, 40), axis=None), usual, ["T1"])
    assert said == ["an extent of 160 mm from foot to head, 80 in training"]


def test_a_scan_without_any_range_of_grey():
    usual = usual_scans([record(grey=(5, 5, 5))])
    assert usual["grey"] == [[0, 0]]
    assert "grey" in unlike(record(), usual, ["T1"])[0]
