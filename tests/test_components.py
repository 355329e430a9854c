"""Components by hand, and the choice of a volume against dropping and evaluating for real."""

import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from penn_jax import components
from penn_jax.cli import main
from penn_jax.components import choice_lines, count_components, drop_small_components
from penn_jax.evaluate import evaluate

SPACING = (0.5, 1.0, 4.0)  # voxels of 2 mm³


@pytest.fixture
def folders(tmp_path):
    """Predictions and references, empty yet."""
    for name in ("predictions", "references"):
        (tmp_path / name).mkdir()
    return tmp_path / "predictions", tmp_path / "references"


def save(folders, name, prediction, reference, spacing=SPACING):
    for folder, labels in zip(folders, (prediction, reference), strict=True):
        nib.save(nib.Nifti1Image(labels, np.diag([*spacing, 1.0])), folder / f"{name}.nii.gz")


def runs(*lengths, label=1):
    """A mask whose runs of voxels of the given lengths lie apart, one a row along x."""
    mask = np.zeros((20, 20, 3), np.uint8)
    for row, length in enumerate(lengths):
        mask[:length, 2 * row, 1] = label
    return mask


def choice(folders, **options):
    return evaluate(*folders, choose_component=True, **options)["component_choice"]


def column(chosen, name):
    return [row[name] for row in chosen["volumes"]]


def two_classes() -> np.ndarray:
    """Class 1: 4 voxels joined by corners, 1 apart; class 2: 3 voxels beside them."""
    mask = np.zeros((8, 8, 4), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = mask[3, 2, 2] = 1
    mask[6, 6, 0] = 1
    mask[2, 3, 2] = mask[2, 4, 2] = mask[2, 5, 2] = 2
    return mask


@pytest.mark.parametrize(
    ("smallest", "ones", "twos"),
    # Voxels of 0.5 × 1 × 4 mm are 2 mm³: components of 8 and 2 mm³ of class 1, of 6 of class 2.
    [(0.0, 5, 3), (2.0, 5, 3), (2.1, 4, 3), (6.0, 4, 3), (6.1, 4, 0), (8.0, 4, 0), (8.1, 0, 0)],
)
def test_components_below_a_volume_become_background(smallest, ones, twos):
    mask = two_classes()
    drop_small_components(mask, (0.5, 1.0, 4.0), smallest)
    assert ((mask == 1).sum(), (mask == 2).sum()) == (ones, twos)
    # What stays is what was there.
    assert (two_classes()[mask > 0] == mask[mask > 0]).all()


def test_a_mask_without_foreground_stays_so():
    mask = np.zeros((4, 4, 4), np.uint8)
    drop_small_components(mask, (1.0, 1.0, 1.0), 10.0)
    assert not mask.any()
    last = np.zeros((4, 4, 4), np.uint8)
    last[0, 0, 0] = 3  # classes 1 and 2 are absent
    drop_small_components(last, (1.0, 1.0, 1.0), 1.0)
    assert last[0, 0, 0] == 3


def test_the_best_volume_by_hand(folders):
    # Runs of 10 and 3 voxels are 20 and 6 mm³, that of 3 is wrong: Dice 2·10/(13 + 10).
    save(folders, "a", runs(10, 3), runs(10))
    # Runs of 8 and 2 voxels are 16 and 4 mm³, both right. Dropping that of 2: 2·8/(8 + 10).
    save(folders, "b", runs(8, 2), runs(8, 2))
    found = choice(folders)
    # 1 % above 4, 6, 16 and 20 mm³, to three digits.
    assert column(found, "volume") == [0.0, 4.04, 6.06, 16.2, 20.2]
    a, b = [20 / 23, 20 / 23, 1, 1, 0], [1, 16 / 18, 16 / 18, 0, 0]
    expected = np.mean([a, b], axis=0)
    np.testing.assert_allclose(column(found, "dice"), expected)
    np.testing.assert_allclose(column(found, "difference"), expected - expected[0])
    assert column(found, "n") == [2] * 5
    # (1 + 16/18)/2 = 0.944 exceeds (20/23 + 1)/2 = 0.935.
    assert found["smallest_component"] == 6.06
    # Two cases that gain 3/23 and −2/18: 0.01 ± 12.7 · 0.12 by Student's t, cut at ±1.
    assert found["gain_ci95"] == [-1, 1]
    assert choice_lines(found) == [
        "use penn predict --smallest-component 6.06",
        "warning: the 95 % interval of the gain, -100.00 to +100.00 %, includes 0",
    ]


def test_it_is_volume_in_mm_and_not_voxels_that_counts(folders):
    # The wrong run has more voxels but less volume: 6 of 1 mm³, against 4 of 2 mm³ elsewhere.
    save(folders, "fine", runs(12, 6), runs(12), spacing=(1.0, 1.0, 1.0))
    save(folders, "coarse", runs(12, 4), runs(12, 4))
    found = choice(folders)
    assert found["smallest_component"] == 6.06
    by_volume = dict(zip(column(found, "volume"), column(found, "dice"), strict=True))
    assert by_volume[0.0] == pytest.approx((24 / 30 + 1) / 2)
    assert by_volume[6.06] == 1.0
    assert by_volume[8.08] == pytest.approx((1 + 24 / 28) / 2)
    assert "includes 0" in choice_lines(found)[1]  # one case gains 0.2, the other nothing


def test_a_gain_in_every_case_comes_without_a_warning(folders):
    for name, length in (("a", 10), ("b", 12), ("c", 9)):
        save(folders, name, runs(length, 3), runs(length))
    found = choice(folders)
    assert found["gain_ci95"][0] > 0
    assert choice_lines(found) == ["use penn predict --smallest-component 6.06"]


def test_nothing_is_chosen_where_nothing_gains_enough(folders):
    save(folders, "a", runs(10, 3), runs(10, 3))
    assert choice(folders)["smallest_component"] == 0
    # A cube of 4,000 voxels and one wrong voxel far from it: Dice 8000/8001, 0.0001 to gain.
    reference = np.zeros((30, 30, 12), np.uint8)
    reference[:20, :20, :10] = 1
    prediction = reference.copy()
    prediction[29, 29, 11] = 1
    for folder in folders:
        (folder / "a.nii.gz").unlink()
    save(folders, "b", prediction, reference)
    found = choice(folders)
    assert max(column(found, "difference")) == pytest.approx(1 / 8001)
    assert (found["smallest_component"], found["gain_ci95"]) == (0, None)
    assert choice_lines(found) == ["use penn predict --smallest-component 0"]


def test_empty_masks_follow_the_policy_of_evaluate(folders):
    nothing = runs()
    # Present in both; in neither, always undefined; only predicted, 0 until it is dropped.
    save(folders, "both", runs(10), runs(10))
    save(folders, "neither", nothing, nothing)
    save(folders, "predicted", runs(3), nothing)
    save(folders, "missed", nothing, runs(4))
    found = choice(folders)
    assert column(found, "volume") == [0.0, 6.06, 20.2]
    np.testing.assert_allclose(column(found, "dice"), [1 / 3, 1 / 2, 0])
    assert column(found, "n") == [3, 2, 2]
    # Other cases than before: there is no pair for the interval.
    assert (found["smallest_component"], found["gain_ci95"]) == (6.06, None)
    assert "no interval" in choice_lines(found)[1]


@pytest.mark.parametrize("length", [0, 3])
def test_a_mean_that_is_undefined_is_never_the_best(folders, length):
    save(folders, "a", runs(length), runs())
    found = choice(folders)
    assert found["smallest_component"] == 0
    # One run of 3 voxels: Dice 0, undefined once it is dropped.
    assert column(found, "dice") == ([None] if length == 0 else [0.0, None])


def test_many_volumes_are_thinned_and_specks_do_not_crowd_out_the_rest(folders):
    # 900 specks of 2 mm³, and runs of 2 to 40 voxels: quantiles of all would hold specks alone.
    mask = np.zeros((60, 80, 40), np.uint8)
    mask[::2, :60:2, 0] = 1
    for length in range(2, 41):
        mask[:length, 2 * (length - 2), 10] = 1
    save(folders, "a", mask, mask)
    volumes = column(choice(folders), "volume")
    assert len(volumes) == 20
    assert volumes[:2] == [0.0, 2.02]
    assert volumes[-1] == 80.8
    assert np.diff(volumes).max() < 8


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), merge=st.booleans())
def test_every_row_is_what_dropping_and_evaluating_gives(tmp_path_factory, seed, merge):
    random = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("random")
    folders = (folder / "predictions", folder / "references")
    dropped = folder / "dropped"
    for made in (*folders, dropped):
        made.mkdir()
    spacing = random.integers(3, 30, 3) / 8
    predictions = {}
    for name in "abc":
        shape = (9, 8, 5) if name != "c" else (9, 8, 1)
        share = [0.75, 0.1, 0.1, 0.05]
        prediction = random.choice(np.array([0, 1, 2, 7], np.uint8), shape, p=share)
        reference = random.choice(np.array([0, 1, 2, 255], np.uint8), shape, p=share)
        save(folders, name, prediction, reference, spacing)
        predictions[name] = prediction
    found = choice(folders, merge_labels=merge)
    for row in found["volumes"][1:6:2]:
        for name, prediction in predictions.items():
            mask = prediction.copy()
            drop_small_components(mask, spacing, row["volume"])
            nib.save(nib.Nifti1Image(mask, np.diag([*spacing, 1.0])), dropped / f"{name}.nii.gz")
        mean = evaluate(dropped, folders[1], merge_labels=merge)["mean"]["dice"]
        assert (row["dice"], row["n"]) == (pytest.approx(mean["value"], abs=1e-12), mean["n"])


def test_the_command_prints_the_choice_and_writes_it(folders, capsys, tmp_path):
    for name in "ab":
        save(folders, name, runs(10, 3), runs(10))
    out = tmp_path / "metrics.json"
    paths = [str(folder) for folder in folders]
    assert main(["evaluate", *paths, "--choose-component", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "use penn predict --smallest-component 6.06\n" in printed
    assert "+13.04" in printed  # 1 − 20/23
    assert json.loads(out.read_text())["component_choice"] == choice(folders)
    assert main(["evaluate", *paths, "--out", str(out)]) == 0
    assert "smallest-component" not in capsys.readouterr().out
    assert "component_choice" not in json.loads(out.read_text())


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    slab=st.sampled_from((1, 30, 100, 1 << 22)),
    share=st.sampled_from((0.1, 0.3, 0.6)),
    seed=st.integers(0, 999),
)
def test_components_counted_slab_by_slab_are_those_of_the_whole(shape, slab, share, seed):
    rng = np.random.default_rng(seed)
    mask = (rng.integers(1, 3, shape) * (rng.random(shape) < share)).astype(np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "_SLAB", slab)
        voxels, found = count_components(mask, 4)
    assert voxels.tolist() == [(mask == number).sum() for number in (1, 2, 3)]
    whole = [ndimage.label(mask == number, np.ones((3, 3, 3)))[1] for number in (1, 2, 3)]
    assert found.tolist() == whole


def test_one_long_way_through_all_slabs_is_one_component(monkeypatch):
    monkeypatch.setattr(components, "_SLAB", 3 * 16)
    mask = np.zeros((40, 4, 4), np.uint8)
    mask[:, 0, 0], mask[:, 3, 3], mask[39, 0] = 1, 1, 1  # two columns
    mask[39, :, 3] = 1  # joined at the very end
    assert [values.tolist() for values in count_components(mask, 2)] == [[85], [1]]
    mask[39] = 0
    assert [values.tolist() for values in count_components(mask, 2)] == [[78], [2]]
