import nibabel as nib
import numpy as np
import pytest

from penn_jax.data.phantom import render
from penn_jax.data.scanner import ORIENTATIONS, store_as, stored_affine
from penn_jax.data.spine import Spine, draw_spine, lay_chart, visible_levels


def draw(seed: int, shape: tuple[int, ...], spacing: tuple[float, ...]):
    """A case before storage: generator, spine, chart."""
    rng = np.random.default_rng(seed)
    spine = draw_spine(rng, np.multiply(shape, spacing))
    return rng, spine, lay_chart(spine, shape, spacing)


def place_of(spine: Spine, along: float, behind: float = 0.0) -> np.ndarray:
    """Spine coordinates to mm (right, anterior, superior), from the centre line's own points."""
    anterior, superior, lean, bend = (
        np.interp(along, spine.along, part) for part in (*spine.line.T, spine.lean, spine.bend)
    )
    back = behind * np.array([-np.cos(lean), np.sin(lean)])
    return np.array([bend, anterior + back[0], superior + back[1]])


def nearest_voxel(affine: np.ndarray, place: np.ndarray) -> tuple[int, ...]:
    return tuple(np.rint(np.linalg.solve(affine, [*place, 1])[:3]).astype(int))


@pytest.mark.parametrize("seed", range(4))
def test_the_chart_finds_points_of_the_centre_line_and_behind_it(seed):
    _, spine, chart = draw(seed, shape=(9, 160, 160), spacing=(4.0, 1.4, 1.4))
    to_voxel = stored_affine("RAS", (9, 160, 160), (4.0, 1.4, 1.4))
    for level in visible_levels(spine, chart):
        for behind in (0.0, 20.0):
            at = spine.centre[level]
            _, y, z = nearest_voxel(to_voxel, place_of(spine, at, behind))
            # Half a voxel of 1.4 mm along each axis: at most 0.99 mm, and a little for the bend.
            assert abs(chart.along[y, z] - at) < 1.3
            assert abs(chart.behind[y, z] - behind) < 1.3


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_stored_axes_run_where_the_affine_says(orientation):
    shape, spacing = (14, 80, 84), (4.0, 2.8, 2.6)
    rng, spine, chart = draw(11, shape, spacing)
    marrow = store_as(render(rng, spine, chart).marrow, orientation)
    affine = stored_affine(orientation, shape, spacing)
    # nibabel reads the same letters from the affine.
    assert "".join(nib.orientations.aff2axcodes(affine)) == orientation
    visible = visible_levels(spine, chart)
    assert len(visible) >= 3
    places = np.array([place_of(spine, spine.centre[level]) for level in visible])
    # Levels count towards the head: superior; and at each of them the scan shows marrow.
    assert (np.diff(places[:, 2]) > 10).all()
    shares = [marrow[nearest_voxel(affine, place)] for place in places]
    assert np.median(shares) > 0.9
    # The discs between them show none.
    discs = [spine.centre[v] + (spine.size[v, 0] + spine.size[v, 1]) / 2 for v in visible[:-1]]
    assert max(marrow[nearest_voxel(affine, place_of(spine, d))] for d in discs) < 0.3
