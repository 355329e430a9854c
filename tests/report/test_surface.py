import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy import ndimage
from scipy.spatial.distance import cdist

from penn_jax.report.surface import surface_distances

SPACINGS = st.floats(0.25, 6.0, width=32)


@st.composite
def blobs(draw, dimensions):
    """Two random masks, smooth or scattered, some of which touch the border."""
    shape = tuple(draw(st.lists(st.integers(2, 14), min_size=dimensions, max_size=dimensions)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    smoothness = draw(st.sampled_from([0.0, 1.0, 2.0]))
    share = draw(st.sampled_from([0.1, 0.4, 0.8]))
    masks = []
    for _ in range(2):
        noise = ndimage.gaussian_filter(random.normal(size=shape), smoothness)
        masks.append(noise >= np.quantile(noise, 1 - share))
    spacing = tuple(draw(st.lists(SPACINGS, min_size=dimensions, max_size=dimensions)))
    return masks[0], masks[1], spacing


def balls(inner, outer, spacing):
    """Two balls about one centre, radii in mm."""
    axes = [np.arange(-outer - 4, outer + 4 + mm, mm) for mm in spacing]
    distance = np.sqrt(sum(x**2 for x in np.meshgrid(*axes, indexing="ij")))
    return distance <= inner, distance <= outer


@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")
@pytest.mark.parametrize("dimensions", [2, 3])
def test_both_distances_agree_with_monai(dimensions):
    @given(blobs(dimensions))
    @settings(deadline=None, max_examples=60)
    def check(drawn):
        prediction, reference, spacing = drawn
        assume(prediction.any() and reference.any())
        found = surface_distances(prediction, reference, spacing)
        pair = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in drawn[:2]]
        options = {"include_background": True, "spacing": spacing}
        hd95 = compute_hausdorff_distance(*pair, percentile=95, **options).item()
        mean = compute_average_surface_distance(*pair, symmetric=True, **options).item()
        assert found.hd95 == pytest.approx(hd95, rel=1e-4, abs=1e-6)
        assert found.mean_surface_distance == pytest.approx(mean, rel=1e-4, abs=1e-6)

    check()


def test_two_voxels_are_their_distance_apart():
    # By hand: 3 voxels of 2 mm and 2 voxels of 4 mm apart: √(6² + 8²) = 10 mm.
    first, second = np.zeros((2, 8, 9), bool)
    first[1, 2], second[4, 4] = True, True
    assert surface_distances(first, second, (2.0, 4.0)) == (10.0, 10.0)


def test_parallel_plates_are_as_far_apart_as_their_gap():
    # By hand: plates one voxel thick, 7 voxels of 0.5 mm apart; every distance is 3.5 mm.
    first, second = np.zeros((2, 12, 6, 5), bool)
    first[2], second[9] = True, True
    assert surface_distances(first, second, (0.5, 1.0, 3.0)) == (3.5, 3.5)


def test_boxes_of_one_inside_the_other():
    # By brute force over the outlines written out by hand: a 3×3 square in a 9×9 square.
    def outline(low, high):
        inside = range(low, high)
        ends = (low, high - 1)
        voxels = [(i, j) for i in inside for j in inside if i in ends or j in ends]
        return np.array(voxels) * (1.0, 2.0)

    inner, outer = np.zeros((2, 11, 11), bool)
    inner[4:7, 4:7], outer[1:10, 1:10] = True, True
    apart = cdist(outline(4, 7), outline(1, 10))
    there, back = apart.min(axis=1), apart.min(axis=0)
    found = surface_distances(inner, outer, (1.0, 2.0))
    assert found.hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert found.mean_surface_distance == pytest.approx(np.concatenate([there, back]).mean())


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.0, 2.0)])
def test_concentric_balls_are_their_radii_apart(spacing):
    # Analytic: 8 and 14 mm; a surface voxel's centre lies up to one voxel inside the surface.
    inner, outer = balls(8, 14, spacing)
    found = surface_distances(inner, outer, spacing)
    assert found.mean_surface_distance == pytest.approx(6, abs=0.5 * max(spacing))
    assert found.hd95 == pytest.approx(6, abs=max(spacing))


@given(blobs(3), st.floats(0.2, 5))
@settings(deadline=None, max_examples=25)
def test_distances_are_symmetric_vanish_on_equal_masks_and_scale_with_the_voxel(drawn, factor):
    first, second, spacing = drawn
    assume(first.any() and second.any())
    found = surface_distances(first, second, spacing)
    assert surface_distances(second, first, spacing) == pytest.approx(found)
    assert surface_distances(first, first, spacing) == (0, 0)
    larger = surface_distances(first, second, [mm * factor for mm in spacing])
    assert larger == pytest.approx([mm * factor for mm in found])


def test_air_around_the_masks_changes_nothing():
    inner, outer = balls(4, 6, (1.0, 1.0, 1.5))
    wide = surface_distances(np.pad(inner, 9), np.pad(outer, 9), (1.0, 1.0, 1.5))
    assert wide == surface_distances(inner, outer, (1.0, 1.0, 1.5))


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0), (0, 0)])
def test_an_empty_mask_has_no_surface(first, second):
    masks = [np.full((4, 4), bool(value)) for value in (first, second)]
    assert all(math.isnan(value) for value in surface_distances(*masks, (1.0, 1.0)))


def test_masks_and_spacing_must_have_the_same_axes():
    mask = np.ones((4, 4), bool)
    with pytest.raises(ValueError, match=r"spacing \(1.0, 1.0, 1.0\)"):
        surface_distances(mask, mask, (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(4, 5\)"):
        surface_distances(mask, np.ones((4, 5), bool), (1.0, 1.0))
