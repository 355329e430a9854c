"""What must not change a fingerprint, and what must."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from penn_jax.data import fingerprint as module
from penn_jax.data.fingerprint import fingerprint


def orders(image: np.ndarray) -> list[np.ndarray]:
    """All 48 permutations and flips of the three axes."""
    return [
        image[tuple(slice(None, None, step) for step in steps)].transpose(*axes, 3)
        for axes in itertools.permutations(range(3))
        for steps in itertools.product((1, -1), repeat=3)
    ]


def brute_force(image: np.ndarray) -> tuple:
    """What the fingerprint stands for, without sums or hashes: the least of the 48 orders."""
    ranks = np.stack(
        [np.unique(channel, return_inverse=True)[1] for channel in np.moveaxis(image, -1, 0)], -1
    ).reshape(image.shape)
    return min((view.shape, view.tolist()) for view in orders(ranks))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*shape, 1)).astype(np.float32)


# Few values and small sizes make ties, the hard case, likely.
images = arrays(
    np.int16,
    array_shapes(min_dims=3, max_dims=3, max_side=3).flatmap(
        lambda shape: st.sampled_from([(*shape, 1), (*shape, 2)])
    ),
    elements=st.integers(0, 2),
)


@given(images, st.integers(0, 47))
def test_no_order_of_the_axes_changes_it(image, k):
    assert fingerprint(np.ascontiguousarray(orders(image)[k])) == fingerprint(image)


@given(images, images)
def test_it_differs_exactly_where_content_differs(one, other):
    same = brute_force(one) == brute_force(other)
    assert (fingerprint(one) == fingerprint(other)) == same


@given(images, st.data())
def test_one_voxel_changed_or_two_exchanged_are_another_scan(image, data):
    voxel = st.tuples(*(st.integers(0, n - 1) for n in image.shape))
    one, other = data.draw(voxel), data.draw(voxel)
    changed, exchanged = image.copy(), image.copy()
    changed[one] = data.draw(st.integers(0, 3))
    exchanged[one], exchanged[other] = image[other], image[one]
    for edited in (changed, exchanged):
        same = brute_force(image) == brute_force(edited)
        assert (fingerprint(image) == fingerprint(edited)) == same


@pytest.mark.parametrize("shape", [(7, 9, 5), (6, 6, 6), (8, 9, 1), (1, 1, 12)])
def test_all_48_orders_in_any_layout_of_memory(shape):
    image = noise(*shape)
    expected = fingerprint(image)
    for view in orders(image):
        assert fingerprint(view) == expected
        assert fingerprint(np.ascontiguousarray(view)) == expected
        assert fingerprint(np.asfortranarray(view)) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x * 3.5 + 1000,  # scl_slope and scl_inter
        lambda x: np.exp(x / 100),
        lambda x: x.astype(np.uint8),
        lambda x: x.astype(np.int32) - 7,
        lambda x: x.astype(">f4"),
        lambda x: x.astype(np.float64) / 255,
    ],
)
def test_an_increasing_change_of_the_values_leaves_it(change):
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 1)).astype(np.float32)
    assert fingerprint(change(image)) == fingerprint(image)


def edited(image: np.ndarray, edit: str) -> np.ndarray:
    image = image.copy()
    if edit == "exchanged":
        image[0, 0, 0], image[3, 4, 5] = image[3, 4, 5].copy(), image[0, 0, 0].copy()
    elif edit == "brightest":
        image[2, 2, 2] = image.max() + 1
    elif edit == "rolled":
        image = np.roll(image, 1, axis=1)
    elif edit == "sheared":
        for k, row in enumerate(image):
            row[:] = np.roll(row, k, axis=0)
    elif edit == "half mirrored":
        image[:4] = image[3::-1]
    elif edit == "cropped":
        image = image[:, :, 1:]
    elif edit == "reversed contrast":
        image = -image
    elif edit == "transposed in one slice":
        image[2] = image[2].transpose(1, 0, 2)
    return image


EDITS = (
    *("exchanged", "brightest", "rolled", "sheared", "half mirrored", "cropped"),
    *("reversed contrast", "transposed in one slice"),
)


def test_edits_of_content_are_other_scans():
    image = noise(8, 8, 8)
    found = {fingerprint(edited(image, edit)) for edit in EDITS}
    assert len(found | {fingerprint(image)}) == len(EDITS) + 1


def test_images_whose_slices_hold_the_same_values_differ():
    # Both are 0 and 1 by turns along each axis, so that every slice of either holds as many ones:
    # a check pattern, and one whose lines are shifted by half a period.
    x, y, z = np.indices((8, 8, 8))
    fine, coarse = (x + y + z) % 2, (x // 2 + y // 2 + z // 2) % 2
    assert fingerprint(fine[..., None]) != fingerprint(coarse[..., None])
    # The tables of the two groups of order four: each row and column holds 0, 1, 2, 3.
    cyclic, klein = ((x % 4 + y % 4) % 4)[..., None], ((x % 4) ^ (y % 4))[..., None]
    assert fingerprint(cyclic) != fingerprint(klein)
    for image in (cyclic, klein):
        for rest in ((1, 2), (0, 2), (0, 1)):
            np.testing.assert_array_equal(image.sum(rest), np.full((8, 1), 16 * (0 + 1 + 2 + 3)))


def test_channels_keep_their_order_and_their_own_scale():
    one, two = noise(4, 5, 6), noise(4, 5, 6, seed=1)
    both = np.concatenate((one, two), -1)
    assert fingerprint(np.concatenate((one * 9, two - 5), -1)) == fingerprint(both)
    assert fingerprint(np.concatenate((two, one), -1)) != fingerprint(both)
    # Each channel alone is the same scan, but not both: the second lies the other way round.
    assert fingerprint(np.concatenate((one, two[::-1]), -1)) != fingerprint(both)
    assert fingerprint(one) != fingerprint(both)


@pytest.mark.parametrize("shape", [(16, 16, 1), (1, 1, 1), (1, 3, 1)])
def test_a_constant_image_has_its_shape_alone(shape):
    assert fingerprint(np.zeros((*shape, 1))) == fingerprint(np.full((*shape, 1), 7.0))
    assert fingerprint(np.zeros((*shape, 1))) != fingerprint(np.zeros((2, 2, 2, 1)))


def test_slabs_do_not_matter(monkeypatch):
    image = noise(9, 10, 11)
    expected = fingerprint(image)
    for slab in (1, 250, 400):
        monkeypatch.setattr(module, "_SLAB", slab)
        assert fingerprint(image) == expected


def test_it_is_a_stated_number():
    # SHA-256 over the text of the shape and the ranks as little-endian 32-bit numbers. The sums
    # over slices: (0, 1) along the second axis, which sorts before (1,) only by its length.
    import hashlib

    image = np.array([5.0, 2.0]).reshape(1, 2, 1, 1)
    content = b"(1, 1, 2, 1)" + np.array([0, 1], "<u4").tobytes()
    assert fingerprint(image) == hashlib.sha256(content).hexdigest()
