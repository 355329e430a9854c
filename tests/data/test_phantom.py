import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage

from penn_jax.data.anatomy import GROUPS, redraw_contrast
from penn_jax.data.phantom import make_phantom, render, write_dataset
from penn_jax.data.spine import draw_spine, lay_chart
from penn_jax.data.volume import read_image, read_labels
from penn_jax.types import InputError

SMALL = {"shape": (48, 48, 48), "spacing": (3.0, 3.0, 3.0)}


def test_the_same_seed_and_index_give_the_same_case_and_others_do_not():
    first, again = make_phantom(3, 5), make_phantom(3, 5)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    image = make_phantom(3, 5, **SMALL)[0]
    assert not np.array_equal(image, make_phantom(3, 6, **SMALL)[0])
    assert not np.array_equal(image, make_phantom(4, 5, **SMALL)[0])


def test_sizes_types_and_spacings_are_those_of_sagittal_scans():
    orientations = set()
    for index in range(6):
        image, labels, affine = make_phantom(0, index)
        assert image.dtype == np.float32
        assert labels.dtype == np.uint8
        assert image.shape == labels.shape
        orientation = nib.orientations.aff2axcodes(affine)
        orientations.add(orientation)
        across = next(axis for axis, letter in enumerate(orientation) if letter in "LR")
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        assert 3.5 <= spacing[across] <= 5.0
        assert 16 <= image.shape[across] <= 20
        in_plane = np.delete(spacing, across)
        assert ((in_plane >= 1.2) & (in_plane <= 1.6)).all()
        assert image.max() < np.iinfo(np.int16).max
    assert len(orientations) >= 3


def test_a_given_grid_is_kept_and_the_coarsest_axis_runs_across():
    image, labels, affine = make_phantom(1, 0, (40, 12, 44), (3.0, 5.0, 3.5))
    assert image.shape == labels.shape == (40, 12, 44)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (3.0, 5.0, 3.5))
    assert nib.orientations.aff2axcodes(affine)[1] in ("L", "R")
    with pytest.raises(InputError, match="only one of shape and spacing"):
        make_phantom(1, 0, shape=(40, 12, 44))


def test_masks_are_of_plausible_size_and_about_a_tenth_of_the_cases_have_none():
    shares = np.array([make_phantom(0, i, **SMALL)[1].mean() for i in range(150)])
    # Probability of no tumour is 0.1: of 150 cases 15 ± 3.7, here within three deviations.
    assert 4 <= np.count_nonzero(shares == 0) <= 26
    with_tumour = shares[shares > 0]
    # A ball of radius 8 mm in 48³ voxels of 3 mm: 2,145 mm³ of 2,985,984 mm³, 0.07 %.
    assert 0.0005 < np.median(with_tumour) < 0.005
    assert with_tumour.max() < 0.02


def test_tumours_enhance_and_are_not_the_only_bright_tissue():
    brighter = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        spine = draw_spine(rng, np.array([56, 224, 224.0]))
        case = render(rng, spine, lay_chart(spine, (14, 80, 80), (4.0, 2.8, 2.8)))
        assert case.marrow.max() > 0.9
        marrow = case.signal[case.marrow > 0.9]
        if (case.tumour > 0.9).any():
            brighter.append(case.signal[case.tumour > 0.9].mean() - marrow.mean())
        # Subcutaneous fat and veins reach the brightness of tumours (1.0 and up).
        assert (case.signal[case.tumour == 0] > 0.9).mean() > 0.01
    assert len(brighter) >= 5
    assert np.mean(brighter) > 0.2


GRID = {"shape": (12, 75, 75), "spacing": (5.0, 3.0, 3.0)}
"""Of lumbar spines, 225 mm high."""


def test_the_lumbar_vertebrae_are_labelled_and_no_others():
    found = []
    for index in range(12):
        _, labels, affine = make_phantom(3, index, **GRID, target="vertebrae")
        bodies, count = scipy.ndimage.label(labels)
        litres = np.bincount(bodies.ravel())[1:] * 45e-6  # of voxels of 5 × 3 × 3 mm
        found.append(count)
        # spine.py: an oval 2 × 17 deep, 2 × 24 wide, 27 mm high has 0.034 l, a box 0.044.
        assert 0.025 < np.median(litres) < 0.055
        # T12 is above and the sacrum below: bodies are apart by the height of a disc and more.
        heights = np.array(scipy.ndimage.center_of_mass(labels, bodies, range(1, count + 1)))
        up = np.sort((heights @ affine[:3, :3].T)[:, 2])
        assert (np.diff(up) > 15).all()
    # Five, of which the field of view now and then cuts the first or the last off.
    assert max(found) == 5
    assert np.mean(found) > 4


def test_lumbar_spines_have_no_fixed_contrast():
    darker = 0
    for index in range(24):
        image, labels, _ = make_phantom(4, index, **GRID, target="vertebrae")
        inside = scipy.ndimage.binary_erosion(labels)
        around = scipy.ndimage.binary_dilation(labels, iterations=3)
        around &= ~scipy.ndimage.binary_dilation(labels, iterations=2)
        darker += np.median(image[inside]) < np.median(image[around])
    # With tumours, 0 of 24: marrow 0.42 and up, discs and muscle at most 0.4. Here by chance.
    assert 4 <= darker <= 20


def test_a_redrawn_contrast_keeps_air_and_the_order_within_a_tissue():
    """A group's two ends lie 0.06 apart in order, wherever it was put; 0 stays 0."""
    rng = np.random.default_rng(0)
    image = np.concatenate([[0.0], GROUPS.ravel()]).astype(np.float32)
    redrawn = np.array([redraw_contrast(rng, image) for _ in range(50)])
    assert (redrawn[:, 0] == 0).all()
    ends = redrawn[:, 1:].reshape(50, len(GROUPS), 2)
    np.testing.assert_allclose(ends[..., 1] - ends[..., 0], 0.06, atol=1e-6)
    assert ends.min() > 0.019
    assert ends.max() < 1.031
    # The order of the groups is anything: muscle and discs darker than marrow in half of them.
    assert 10 < (ends[:, 2, 0] < ends[:, 3, 0]).sum() < 40


def test_in_the_world_the_back_is_behind_whatever_the_storage():
    for index in range(8):
        image, _, affine = make_phantom(7, index, **SMALL)
        canonical = nib.as_closest_canonical(nib.Nifti1Image(image, affine)).get_fdata()
        # Behind the skin there is air, in front abdomen or chest; the fat of the back is brightest.
        weights = np.clip(canonical - np.quantile(canonical, 0.9), 0, None).sum(axis=(0, 2))
        brightest = (weights * np.arange(48)).sum() / weights.sum()
        assert brightest < 23.5


def test_the_data_set_is_an_nnunet_raw_folder(tmp_path: Path):
    out = tmp_path / "phantoms"
    write_dataset(out, cases=5, seed=2, test_cases=2, **SMALL)
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    train, test = [f"phantom{i:04d}" for i in range(5)], ["phantom0005", "phantom0006"]
    assert files == sorted(
        ["dataset.json", "splits_final.json"]
        + [f"imagesTr/{n}_0000.nii.gz" for n in train]
        + [f"labelsTr/{n}.nii.gz" for n in train]
        + [f"imagesTs/{n}_0000.nii.gz" for n in test]
        + [f"labelsTs/{n}.nii.gz" for n in test]
    )
    description = json.loads((out / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "tumour": 1}
    assert description["channel_names"] == {"0": "T1Gd"}
    assert description["numTraining"] == 5
    assert description["file_ending"] == ".nii.gz"
    splits = json.loads((out / "splits_final.json").read_text())
    assert splits == [{"train": train[:4], "val": train[4:]}]
    assert [p.name for p in tmp_path.iterdir()] == ["phantoms"]

    image, labels, affine = make_phantom(2, 6, **SMALL)
    stored = read_image([out / "imagesTs/phantom0006_0000.nii.gz"])
    np.testing.assert_array_equal(stored.array[..., 0], np.rint(image))
    np.testing.assert_allclose(stored.affine, affine, atol=1e-4)
    header = nib.load(out / "imagesTs/phantom0006_0000.nii.gz").header
    assert header.get_data_dtype() == np.int16
    np.testing.assert_allclose(header.get_qform(), affine, atol=1e-3)
    np.testing.assert_array_equal(read_labels(out / "labelsTs/phantom0006.nii.gz").array, labels)


def test_a_data_set_is_not_written_over_another_or_from_too_few_cases(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="not empty, expected a new folder"):
        write_dataset(tmp_path, cases=2, seed=0)
    with pytest.raises(InputError, match="1 cases, expected at least 2"):
        write_dataset(tmp_path / "new", cases=1, seed=0)
    for wrong in (
        {"shape": (4, 0, 4), "spacing": (1.0, 1.0, 1.0)},
        {"shape": (4, 4, 4), "spacing": (1.0, np.nan, 1.0)},
        {"seed": -1},
    ):
        with pytest.raises(InputError, match="expected sizes above 0"):
            write_dataset(tmp_path / "new", cases=2, **{"seed": 0, **wrong})
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
