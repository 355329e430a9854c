"""The page of restored patches: what is drawn where, in which grey."""

import numpy as np
import pytest
from matplotlib.image import imread

from penn_jax.report.figures import Restoration, restoration_page


def _row(corrupted, restored, shape=(40, 60)):
    """Constant pictures beside an original of two halves, which set the grey window to -1..1."""
    original = np.full(shape, -1.0, np.float32)
    original[:, shape[1] // 2 :] = 1.0
    constant = (np.full(shape, grey, np.float32) for grey in (corrupted, restored))
    return Restoration("case_7", original, *constant)


def _greys(page):
    """For each of the four columns, the share of its pixels that has each grey."""
    pixels = imread(page)[..., :3]
    width = pixels.shape[1] // 4
    found = []
    for column in range(4):
        panel = pixels[:, column * width : (column + 1) * width].reshape(-1, 3)
        values, counts = np.unique(panel[np.ptp(panel, axis=1) == 0, 0], return_counts=True)
        found.append(dict(zip(values.round(2).tolist(), counts / len(panel), strict=True)))
    return found


def test_pictures_share_the_window_of_the_original_and_errors_its_width(tmp_path):
    page = tmp_path / "restored.png"
    restoration_page(page, [_row(0.0, 0.5)])
    original, corrupted, restored, error = _greys(page)
    # In the window -1..1, 0 is half way and 0.5 three quarters; the errors |0.5 - 1| and
    # |0.5 + 1| are 1/4 and 3/4 of its width. Matplotlib has 256 greys: 127 or 128 is 0.5.
    for panel, expected in (
        (original, (0.0, 1.0)),
        (corrupted, (0.5,)),
        (restored, (0.75,)),
        (error, (0.25, 0.75)),
    ):
        most = sorted(panel, key=panel.__getitem__)[-len(expected) :]
        assert sorted(most) == pytest.approx(list(expected), abs=0.011)
        # Heads and margins take little.
        assert sum(panel[grey] for grey in most) > 0.7


def test_each_patch_has_a_row_and_nothing_but_the_page_is_left(tmp_path):
    page = tmp_path / "restored.png"
    rows = [_row(0.0, 0.5), _row(-0.5, 0.0, shape=(60, 60))]
    restoration_page(page, rows)
    two = imread(page).shape
    restoration_page(page, rows[:1])
    one = imread(page).shape
    # Panels are 3 inches wide at 150 dots: 40 of 60 voxels make 2 inches of height, 60 make 3.
    assert one[1] == two[1] == 4 * 450
    assert two[0] - one[0] == 450
    assert [file.name for file in tmp_path.iterdir()] == ["restored.png"]


def test_constant_patch_can_be_drawn(tmp_path):
    page = tmp_path / "restored.png"
    flat = np.zeros((32, 32), np.float32)
    restoration_page(page, [Restoration("air", flat, flat, flat)])
    assert all(max(panel, key=panel.__getitem__) == 0.0 for panel in _greys(page))


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no patch was given"):
        restoration_page(tmp_path / "restored.png", [])
