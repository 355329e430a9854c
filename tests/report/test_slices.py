"""Slices of a case with outlines."""

import base64
import io
import re

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from PIL import Image

from penn_jax.report.slices import MOST_SLICES, views


def arrays(shape):
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return image, np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)


def filled(path, rows, columns):
    """The voxels inside an outline."""
    inside = np.zeros((rows, columns), bool)
    centres = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1) + 0.5
    for part in path.removesuffix("Z").split("Z"):
        corners = [tuple(map(float, point.split())) for point in part[1:].split("L")]
        inside ^= Polygon(corners).contains_points(centres.reshape(-1, 2)).reshape(rows, columns)
    return inside


def picture(found):
    encoded = found.image.split(",")[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("L"), float)


def test_outlines_enclose_exactly_their_voxels():
    image, reference, prediction = arrays((1, 30, 20))
    prediction[0] = np.random.default_rng(1).integers(0, 3, (30, 20)) * (image[0] > 0)
    reference[0, :5, :] = 1  # up to the border
    reference[0, 10, 10] = 255  # not outlined
    found = views("case", image, reference, prediction, (1.0, 1.0))
    (shown,) = found.pictures
    assert [outline.label for outline in shown.reference] == [1]
    # Drawn transposed, both axes reversed: second axis upwards, first to the left.
    upright = prediction[0].T[::-1, ::-1]
    assert (found.rows, found.columns) == upright.shape == (20, 30)
    for outline in shown.prediction:
        np.testing.assert_array_equal(filled(outline.path, 20, 30), upright == outline.label)
    np.testing.assert_array_equal(
        filled(shown.reference[0].path, 20, 30), reference[0].T[::-1, ::-1] == 1
    )


def test_front_is_left_and_head_is_up():
    # A sagittal frame has axes (anterior, superior): the bright corner is in front at the top.
    image, reference, prediction = arrays((1, 40, 60))
    image[:] = 0
    image[0, 30:, 45:] = 1
    grey = picture(views("case", image, reference, prediction, (1.0, 1.0)).pictures[0])
    assert grey.shape == (60, 40)
    assert grey[:12, :8].mean() > 240
    assert grey[20:, 15:].mean() < 15


def test_a_volume_is_cut_along_its_coarsest_axis():
    image, reference, prediction = arrays((1, 12, 10, 8))
    reference[0, :, 7, :] = 1
    found = views("case", image, reference, prediction, (0.5, 3.0, 1.0))
    assert found.slices == 10
    assert found.spacing == (0.5, 1.0)
    assert (found.columns, found.rows) == (12, 8)
    assert found.pictures[found.start].number == 8  # counted from 1


def test_of_many_slices_those_of_the_structure_are_shown():
    image, reference, prediction = arrays((100, 8, 8))
    prediction[:, 0, 0] = 1
    reference[40:80, 2:4, 2:4] = 1
    reference[60, 2:7, 2:7] = 1
    found = views("case", image, reference, prediction, (1.0, 1.0))
    numbers = [shown.number for shown in found.pictures]
    assert len(numbers) <= MOST_SLICES
    assert (numbers[0], numbers[-1]) == (40, 81)  # one more on either side of 41 … 80
    assert max(np.diff(numbers)) <= 3  # 42 slices in 20 pictures, evenly
    empty = views("case", image, reference * 0, prediction * 0, (1.0, 1.0))
    assert (empty.pictures[0].number, empty.pictures[-1].number) == (1, 100)
    short = views("case", image[:5], reference[:5], prediction[:5], (1.0, 1.0))
    assert [shown.number for shown in short.pictures] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_flat_image_is_black(value):
    image, reference, prediction = arrays((1, 8, 8))
    found = views("case", image * 0 + value, reference, prediction, (1.0, 1.0))
    assert picture(found.pictures[0]).max() == 0
    assert not re.search("nan", str(found))
