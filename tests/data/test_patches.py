"""The patch extraction module: exact inverse, balanced draws, and one interpolation."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from penn_jax.config import PatchConfig
from penn_jax.data import patches
from penn_jax.data.patches import PatchDraw, draw_patch, extract, patch_grid, restore
from penn_jax.types import IGNORE_LABEL

STRAIGHT = {"rotation_degrees": 0.0, "scaling": 1.0}


class Arrays:
    """A reader of one case held in memory."""

    def __init__(self, image, labels):
        self._image, self._labels = image, labels

    def image(self, case, box):
        return self._image[box]

    def labels(self, case, box):
        return self._labels[box]


def cut_patch(image, labels, draw, config, labelled=True):
    channels = image.shape[-1] * (1 + 2 * config.neighbours)
    patch = np.empty((*config.size, channels), np.float32)
    label = np.empty(config.size, np.uint8)
    shape, reader = image.shape[:-1], Arrays(image, labels)
    patches.cut_patch(reader, "case", shape, draw, config, patch, label, labelled=labelled)
    return patch, label


@st.composite
def grids(draw):
    axes = draw(st.sampled_from([2, 3]))
    multiple = draw(st.sampled_from([1, 2, 4]))
    shape = [draw(st.integers(1, 9)) * multiple for _ in range(axes)]
    size = [draw(st.integers(1, 7)) * multiple for _ in range(axes)]
    overlap = [draw(st.integers(0, part - multiple)) for part in size]
    return shape, size, overlap, multiple


@given(grids(), st.integers(0, 2**31 - 1), st.booleans())
def test_restore_is_the_exact_inverse_of_extract(geometry, seed, channels):
    shape, size, overlap, multiple = geometry
    x = np.random.default_rng(seed).normal(size=(*shape, 2) if channels else shape)
    grid = patch_grid(shape, size, overlap, multiple)
    parts = extract(x, grid)
    assert parts.shape == (len(grid), *size, *x.shape[len(shape) :])
    restored = restore(parts, grid)
    assert restored.dtype == x.dtype
    np.testing.assert_array_equal(restored, x)


@given(grids())
def test_grid_shares_the_overlap_and_starts_on_the_multiple(geometry):
    shape, size, overlap, multiple = geometry
    grid = patch_grid(shape, size, overlap, multiple)
    axes = zip(shape, size, overlap, grid.starts, grid.bounds, strict=True)
    for length, width, shared, starts, bounds in axes:
        assert all(start % multiple == 0 for start in starts)
        assert all(b - a <= width - shared for a, b in pairwise(starts))
        assert max(start + width for start in starts) == max(length, width)
        # Where two patches meet, each voxel lies at least half of the overlap inside its patch.
        for i, start in enumerate(starts):
            if i > 0:
                assert bounds[i] - start >= shared // 2
            if i + 1 < len(starts):
                assert start + width - bounds[i + 1] >= shared // 2


def test_grid_refuses_an_overlap_without_a_step():
    with pytest.raises(ValueError, match="can share 0 to 7"):
        patch_grid((20, 20), (8, 8), (8, 8))
    with pytest.raises(ValueError, match="multiples of 4"):
        patch_grid((20, 22), (8, 8), (0, 0), 4)


def _case(shape=(5, 40, 50), seed=0):
    generator = np.random.default_rng(seed)
    image = generator.normal(size=(*shape, 2)).astype(np.float32)
    labels = generator.integers(0, 3, shape).astype(np.uint8)
    return image, labels


@given(st.integers(0, 2**31 - 1), st.sampled_from([(5, 40, 50), (2, 10, 60), (1, 14, 15, 30)]))
def test_straight_patch_shows_the_frame_itself(seed, shape):
    image, labels = _case(shape)
    axes = len(shape) - 1
    config = PatchConfig(size=(16, 24, 8)[:axes], foreground_fraction=0.0, **STRAIGHT)
    draw = draw_patch(np.random.default_rng(seed), shape, dict, config)
    patch, label = cut_patch(image, labels, draw, config)
    start = np.round(draw.centre - (np.array(config.size) - 1) / 2).astype(int)
    padding = [(size, size) for size in config.size]
    wanted = tuple(slice(a + s, a + 2 * s) for a, s in zip(start, config.size, strict=True))
    expected = np.pad(image[draw.frame], [*padding, (0, 0)], mode="edge")[wanted]
    np.testing.assert_array_equal(patch, expected)
    outside = np.pad(labels[draw.frame], padding, constant_values=IGNORE_LABEL)[wanted]
    np.testing.assert_array_equal(label, outside)
    # A frame that is larger than the patch holds it whole.
    for a, size, length in zip(start, config.size, shape[1:], strict=True):
        if length >= size:
            assert 0 <= a <= length - size
        else:
            assert a == math.floor((length - size) / 2)


@given(st.integers(0, 2**31 - 1))
def test_bent_patch_is_scipys_interpolation_of_the_whole_frame(seed):
    image, labels = _case()
    config = PatchConfig(
        size=(20, 20), neighbours=1, rotation_degrees=40.0, scaling=1.5, stretch=1.2, flip=True
    )
    draw = draw_patch(np.random.default_rng(seed), labels.shape, dict, config)
    patch, label = cut_patch(image, labels, draw, config)
    # Independently: coordinates of every voxel, and map_coordinates on the whole frame.
    o = np.stack(np.meshgrid(np.arange(20), np.arange(20), indexing="ij")) - 9.5
    where = np.einsum("ij,jkl->ikl", draw.matrix, o) + draw.centre[:, None, None]
    frames = np.clip([draw.frame - 1, draw.frame, draw.frame + 1], 0, 4)
    for channel in range(6):
        plane = image[frames[channel // 2], ..., channel % 2].astype(np.float64)
        expected = ndimage.map_coordinates(plane, where, order=1, mode="nearest")
        # Interpolation weights are float64 in both; the values are rounded to float32 once.
        np.testing.assert_allclose(patch[..., channel], expected, atol=1e-5)
    inside = (where >= 0).all(axis=0) & (where[0] <= 39) & (where[1] <= 49)
    nearest = ndimage.map_coordinates(labels[draw.frame], where, order=0, mode="nearest")
    near_half = np.abs(where - np.floor(where) - 0.5).min(axis=0) < 1e-6
    sure = inside & ~near_half
    np.testing.assert_array_equal(label[sure], nearest[sure])
    far = ((where < -0.5 - 1e-6) | (where > np.array([39.5, 49.5])[:, None, None] + 1e-6)).any(0)
    assert (label[far] == IGNORE_LABEL).all()


def test_rotation_keeps_lengths_in_millimetres():
    config = PatchConfig(size=(8, 8), rotation_degrees=30.0, scaling=1.0)
    spacing = np.array([0.5, 2.0])
    draw = draw_patch(np.random.default_rng(3), (1, 64, 64), dict, config, spacing.tolist())
    step_in_mm = (draw.matrix @ np.eye(2)) * spacing[:, None]
    np.testing.assert_allclose(np.linalg.norm(step_in_mm, axis=0), spacing)
    assert abs(draw.matrix[0, 1]) > 1e-3


def test_foreground_classes_are_drawn_equally_often():
    labels = np.zeros((4, 60, 60), np.uint8)
    labels[1, 20:24, 20:24] = 1  # 16 voxels
    labels[2, 10:50, 10:50] = 2  # 1,600 voxels
    voxels = {k: np.argwhere(labels == k).astype(np.int32) for k in (1, 2)}
    config = PatchConfig(size=(5, 5), foreground_fraction=0.8, **STRAIGHT)
    generator = np.random.default_rng(0)
    centres = []
    for _ in range(2000):
        draw = draw_patch(generator, labels.shape, lambda: voxels, config)
        centres.append(labels[(draw.frame, *draw.centre.astype(int))])
    share = np.bincount(centres, minlength=3) / 2000
    # 0.4 each and what falls there by chance: 0.2·16/14400 and 0.2·1600/14400 (moved inside by 2).
    assert share[1] == pytest.approx(0.4, abs=0.04)  # 3.6 standard deviations of 0.011
    assert share[2] == pytest.approx(0.4 + 0.2 * 1600 / 14400, abs=0.04)


def test_a_case_without_foreground_or_labels_still_gives_patches():
    image, labels = _case()
    config = PatchConfig(size=(8, 8), foreground_fraction=1.0)
    draw = draw_patch(np.random.default_rng(0), labels.shape, dict, config)
    patch, label = cut_patch(image, None, draw, config, labelled=False)
    assert np.isfinite(patch).all()
    assert (label == IGNORE_LABEL).all()


def test_neighbours_repeat_at_the_first_and_last_slice():
    image, labels = _case()
    config = PatchConfig(size=(40, 50), neighbours=2, foreground_fraction=0.0, **STRAIGHT)
    for frame, expected in ((0, [0, 0, 0, 1, 2]), (3, [1, 2, 3, 4, 4]), (4, [2, 3, 4, 4, 4])):
        draw = PatchDraw(frame, np.array([19.5, 24.5]), np.eye(2))
        patch, _ = cut_patch(image, labels, draw, config)
        np.testing.assert_array_equal(patch, np.concatenate([image[i] for i in expected], axis=-1))


def test_a_draw_is_all_in_its_coordinates():
    for shape in ((3, 64, 64), (1, 32, 32, 32)):
        config = PatchConfig(size=(16,) * (len(shape) - 1))
        draw = draw_patch(np.random.default_rng(7), shape, dict, config)
        again = PatchDraw.at(draw.coordinates(), len(shape) - 1)
        assert again.frame == draw.frame
        np.testing.assert_array_equal(again.centre, draw.centre)
        np.testing.assert_array_equal(again.matrix, draw.matrix)


def test_draws_do_not_depend_on_other_options():
    shape = (3, 64, 64)
    plain = draw_patch(np.random.default_rng(7), shape, dict, PatchConfig(flip=False))
    flipped = draw_patch(np.random.default_rng(7), shape, dict, PatchConfig(flip=True))
    assert plain.frame == flipped.frame
    np.testing.assert_array_equal(plain.centre, flipped.centre)
    np.testing.assert_array_equal(np.abs(plain.matrix), np.abs(flipped.matrix))
