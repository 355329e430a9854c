import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penn_jax.data import phantom
from penn_jax.data.volume import read_image, read_labels
from penn_jax.types import InputError

SMALL = {"shape": (48, 48, 48), "spacing": (3.0, 3.0, 3.0)}


def draw(seed: int, shape=(14, 80, 80), spacing=(4.0, 2.8, 2.8)):
    """A case before storage: generator, spine, chart."""
    rng = np.random.default_rng(seed)
    spine = phantom.draw_spine(rng, np.multiply(shape, spacing))
    return rng, spine, phantom.chart(spine, shape, spacing)


def place_of(spine: phantom.Spine, along: float, behind: float = 0.0) -> np.ndarray:
    """Spine coordinates to mm (right, anterior, superior), from the centre line's own points."""
    anterior, superior, lean, bend = (
        np.interp(along, spine.along, part) for part in (*spine.line.T, spine.lean, spine.bend)
    )
    back = behind * np.array([-np.cos(lean), np.sin(lean)])
    return np.array([bend, anterior + back[0], superior + back[1]])


def nearest_voxel(affine: np.ndarray, place: np.ndarray) -> tuple[int, ...]:
    return tuple(np.rint(np.linalg.solve(affine, [*place, 1])[:3]).astype(int))


def test_the_same_seed_and_index_give_the_same_case_and_others_do_not():
    first, again = phantom.make_phantom(3, 5), phantom.make_phantom(3, 5)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    image = phantom.make_phantom(3, 5, **SMALL)[0]
    assert not np.array_equal(image, phantom.make_phantom(3, 6, **SMALL)[0])
    assert not np.array_equal(image, phantom.make_phantom(4, 5, **SMALL)[0])


def test_sizes_types_and_spacings_are_those_of_sagittal_scans():
    orientations = set()
    for index in range(6):
        image, labels, affine = phantom.make_phantom(0, index)
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
    image, labels, affine = phantom.make_phantom(1, 0, (40, 12, 44), (3.0, 5.0, 3.5))
    assert image.shape == labels.shape == (40, 12, 44)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (3.0, 5.0, 3.5))
    assert nib.orientations.aff2axcodes(affine)[1] in ("L", "R")
    with pytest.raises(InputError, match="only one of shape and spacing"):
        phantom.make_phantom(1, 0, shape=(40, 12, 44))


def test_masks_are_of_plausible_size_and_about_a_tenth_of_the_cases_have_none():
    shares = np.array([phantom.make_phantom(0, i, **SMALL)[1].mean() for i in range(150)])
    # Probability of no tumour is 0.1: of 150 cases 15 ± 3.7, here within three deviations.
    assert 4 <= np.count_nonzero(shares == 0) <= 26
    with_tumour = shares[shares > 0]
    # A ball of radius 8 mm in 48³ voxels of 3 mm: 2,145 mm³ of 2,985,984 mm³, 0.07 %.
    assert 0.0005 < np.median(with_tumour) < 0.005
    assert with_tumour.max() < 0.02


def test_tumours_enhance_and_are_not_the_only_bright_tissue():
    brighter = []
    for seed in range(8):
        rng, spine, chart = draw(seed)
        case = phantom.render(rng, spine, chart)
        assert case.marrow.max() > 0.9
        marrow = case.signal[case.marrow > 0.9]
        if (case.tumour > 0.9).any():
            brighter.append(case.signal[case.tumour > 0.9].mean() - marrow.mean())
        # Subcutaneous fat and veins reach the brightness of tumours (1.0 and up).
        assert (case.signal[case.tumour == 0] > 0.9).mean() > 0.01
    assert len(brighter) >= 5
    assert np.mean(brighter) > 0.2


def test_a_necrotic_core_is_dark_and_belongs_to_the_mask():
    rng, spine, chart = draw(0)
    level = phantom._visible(spine, chart)[0]
    blob = phantom.Blob(spine.centre[level], 0, 0, 16, 16, 16)
    ring = phantom.Tumour((blob,), rim=5, inside_canal=False, brightness=1.2)
    image = np.full(chart.beside.shape, 0.5, np.float32)
    share = phantom.paint_tumour(rng, image, chart, ring, np.ones_like(image))
    from_middle = np.hypot(np.hypot(chart.along - blob.along, chart.behind), chart.beside)
    core, rim = from_middle < 7, (from_middle > 12) & (from_middle < 13.5)
    np.testing.assert_allclose(share[from_middle < 12], 1)
    # 0.3 is the core's intensity; the rim's is ``brightness`` with 6 % of texture.
    np.testing.assert_allclose(image[core], 0.3, atol=1e-5)
    assert image[rim].mean() > 1.0
    assert (share[from_middle > 23] == 0).all()


def test_the_volume_of_a_blob_is_that_of_an_ellipsoid():
    rng = np.random.default_rng(0)
    axes = tuple(np.arange(-30, 30.1, 1.5) for _ in range(3))
    zero = np.zeros((41, 41), np.float32)
    chart = phantom.Chart(
        axes=axes,
        along=(zero + axes[2]).astype(np.float32),
        behind=(zero - axes[1][:, None]).astype(np.float32),
        beside=(np.zeros((41, 41, 41)) + axes[0][:, None, None]).astype(np.float32),
        under_skin=zero,
        edge=1.5,
        slab=1.5,
    )
    radii = rng.uniform(8, 20, 3)
    distance = phantom._distance(chart, [phantom.Blob(0, 0, 0, *radii)])
    # The surface is nearest to the middle along the shortest axis.
    np.testing.assert_allclose(distance[20, 20, 20], -radii.min(), rtol=1e-5)
    share = phantom.cover(distance, chart.edge)
    np.testing.assert_allclose(share.sum() * 1.5**3, 4 / 3 * np.pi * radii.prod(), rtol=0.02)


def test_noise_in_air_has_the_moments_of_the_rayleigh_distribution():
    sigma = 0.7
    air = phantom.rician(np.random.default_rng(0), np.zeros((100, 100, 30), np.float32), sigma)
    assert air.dtype == np.float32
    assert air.min() >= 0
    # Mean σ√(π/2), variance (2 − π/2)σ²; the mean's standard error is 0.65 σ/√300,000 = 0.0008.
    np.testing.assert_allclose(air.mean(), sigma * np.sqrt(np.pi / 2), atol=0.004)
    np.testing.assert_allclose(air.var(), (2 - np.pi / 2) * sigma**2, rtol=0.02)


def test_noise_on_a_strong_signal_has_the_second_moment_of_the_rice_distribution():
    signal = np.full((60, 60, 60), 3.0, np.float32)
    noisy = phantom.rician(np.random.default_rng(1), signal, 0.5)
    # E|A + σn|² = A² + 2σ² = 9.5.
    np.testing.assert_allclose((noisy.astype(np.float64) ** 2).mean(), 9.5, rtol=0.005)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(2, 30))
def test_a_random_field_has_variance_one_at_every_point(seed, scale):
    # The variance over 400 draws has a relative standard deviation of √(2/399) = 0.07; 5 of them.
    rng = np.random.default_rng(seed)
    points = [np.array([0.0, 3.3]), np.array([1.0, 50.0])]
    draws = np.stack([phantom.smooth_field(rng, points, scale) for _ in range(400)])
    np.testing.assert_allclose(draws.var(axis=0), 1, atol=0.4)


def test_the_rounded_box_measures_distance():
    a = np.array([-3.0, 2.0, 3.0, -5.0], np.float32)
    b = np.array([-4.0, -9.0, 4.0, 1.5], np.float32)
    # Inside: to the nearer side. Outside a side: straight. At the corner with radius 0: 3-4-5.
    np.testing.assert_allclose(phantom.rounded_box(a, b, 0), [-3, 2, 5, 1.5])
    # The circle of radius 2 around (−2, −2): its distance to the corner (0, 0) is √8 − 2.
    corner = phantom.rounded_box(np.zeros(1), np.zeros(1), 2)
    np.testing.assert_allclose(corner, np.sqrt(8) - 2)


@pytest.mark.parametrize("seed", range(4))
def test_the_chart_finds_points_of_the_centre_line_and_behind_it(seed):
    _, spine, chart = draw(seed, shape=(9, 160, 160), spacing=(4.0, 1.4, 1.4))
    to_voxel = phantom.stored_affine("RAS", (9, 160, 160), (4.0, 1.4, 1.4))
    for level in phantom._visible(spine, chart):
        for behind in (0.0, 20.0):
            at = spine.centre[level]
            _, y, z = nearest_voxel(to_voxel, place_of(spine, at, behind))
            # Half a voxel of 1.4 mm along each axis: at most 0.99 mm, and a little for the bend.
            assert abs(chart.along[y, z] - at) < 1.3
            assert abs(chart.behind[y, z] - behind) < 1.3


@pytest.mark.parametrize("orientation", phantom.ORIENTATIONS)
def test_the_stored_axes_run_where_the_affine_says(orientation):
    shape, spacing = (14, 80, 84), (4.0, 2.8, 2.6)
    rng, spine, chart = draw(11, shape, spacing)
    marrow = phantom.store_as(phantom.render(rng, spine, chart).marrow, orientation)
    affine = phantom.stored_affine(orientation, shape, spacing)
    # nibabel reads the same letters from the affine.
    assert "".join(nib.orientations.aff2axcodes(affine)) == orientation
    visible = phantom._visible(spine, chart)
    assert len(visible) >= 3
    places = np.array([place_of(spine, spine.centre[level]) for level in visible])
    # Levels count towards the head: superior; and at each of them the scan shows marrow.
    assert (np.diff(places[:, 2]) > 10).all()
    shares = [marrow[nearest_voxel(affine, place)] for place in places]
    assert np.median(shares) > 0.9
    # The discs between them show none.
    discs = [spine.centre[v] + (spine.size[v, 0] + spine.size[v, 1]) / 2 for v in visible[:-1]]
    assert max(marrow[nearest_voxel(affine, place_of(spine, d))] for d in discs) < 0.3


def test_in_the_world_the_back_is_behind_whatever_the_storage():
    for index in range(8):
        image, _, affine = phantom.make_phantom(7, index, **SMALL)
        canonical = nib.as_closest_canonical(nib.Nifti1Image(image, affine)).get_fdata()
        # Behind the skin there is air, in front abdomen or chest; the fat of the back is brightest.
        weights = np.clip(canonical - np.quantile(canonical, 0.9), 0, None).sum(axis=(0, 2))
        brightest = (weights * np.arange(48)).sum() / weights.sum()
        assert brightest < 23.5


def test_the_pose_is_a_small_rotation():
    for seed in range(20):
        pose = phantom.draw_pose(np.random.default_rng(seed))
        rotation = pose[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) > 0
        # Three turns of at most 10 degrees each.
        assert np.trace(rotation) >= 1 + 2 * np.cos(np.deg2rad(30))


def test_the_data_set_is_an_nnunet_raw_folder(tmp_path: Path):
    out = tmp_path / "phantoms"
    phantom.write_dataset(out, cases=5, seed=2, test_cases=2, **SMALL)
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

    image, labels, affine = phantom.make_phantom(2, 6, **SMALL)
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
        phantom.write_dataset(tmp_path, cases=2, seed=0)
    with pytest.raises(InputError, match="1 cases, expected at least 2"):
        phantom.write_dataset(tmp_path / "new", cases=1, seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
