import gzip
import os
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penn_jax.data.grid import from_frames, to_frames
from penn_jax.data.header import LARGEST_BYTES
from penn_jax.data.volume import (
    check_same_grid,
    frame_grid,
    read_geometry,
    read_image,
    read_labels,
    write_image,
    write_mask,
    write_probabilities,
)
from penn_jax.types import InputError

SHAPE = (5, 6, 3)
OBLIQUE = np.array(
    # First axis towards the feet, second towards the back, third across, tilted by 10 degrees.
    nib.affines.from_matvec(
        nib.eulerangles.euler2mat(x=np.deg2rad(10))
        @ np.array([[0, 0, 4.0], [0, -1.5, 0], [-1.0, 0, 0]]),
        [-30, 20, 10],
    )
)


def ramp(dtype=np.float32) -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def save(path: Path, array: np.ndarray, affine=OBLIQUE, kind=nib.Nifti1Image, **fields) -> Path:
    """Write with nibabel, then overwrite header fields in the bytes, past nibabel's own checks."""
    image = kind(array, affine)
    content = bytearray(image.to_bytes())
    header = type(image.header)(bytes(content[: image.header.sizeof_hdr]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[: image.header.sizeof_hdr] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".gz" else bytes(content))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "case.nii.gz"


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("name", ["case.nii.gz", "case.nii"])
def test_image_types_are_read_alike(tmp_path, dtype, name):
    volume = read_image([save(tmp_path / name, ramp(dtype))])
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[..., 0], ramp())
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-6)
    assert volume.spacing == pytest.approx((1, 1.5, 4))  # the columns of OBLIQUE before the tilt
    assert volume.orientation == "IPR"


def test_big_endian_is_read_right(file):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    nib.Nifti1Image(ramp(np.int16), OBLIQUE, header).to_filename(file)
    assert gzip.decompress(file.read_bytes())[:4] == (348).to_bytes(4, "big")
    np.testing.assert_array_equal(read_image([file]).array[..., 0], ramp())
    np.testing.assert_array_equal(read_labels(file).array, ramp())


def test_slope_and_intercept_are_applied(file):
    volume = read_image([save(file, ramp(np.int16), scl_slope=0.5, scl_inter=-3)])
    np.testing.assert_array_equal(volume.array[..., 0], ramp() * 0.5 - 3)


def test_nifti2_and_a_fourth_axis_of_one_frame(file):
    save(file, ramp()[..., None], kind=nib.Nifti2Image)
    np.testing.assert_array_equal(read_image([file]).array[..., 0], ramp())
    np.testing.assert_array_equal(read_labels(file).array, ramp())


def test_channels_are_stacked_and_must_share_a_grid(tmp_path):
    first = save(tmp_path / "a_0000.nii.gz", ramp())
    second = save(tmp_path / "a_0001.nii.gz", -ramp())
    np.testing.assert_array_equal(
        read_image([first, second]).array, np.stack((ramp(), -ramp()), axis=-1)
    )
    moved = OBLIQUE.copy()
    moved[0, 3] += 0.2
    save(second, ramp(), moved)
    with pytest.raises(InputError, match=r"a_0001.nii.gz: its affine puts a corner 0.2 mm off"):
        read_image([first, second])
    save(second, ramp()[:, :, :2])
    with pytest.raises(InputError, match=r"shape \(5, 6, 2\), expected \(5, 6, 3\) as in .*0000"):
        read_image([first, second])


def test_affines_that_differ_by_rounding_agree(tmp_path):
    first = read_image([save(tmp_path / "a.nii.gz", ramp())])
    second = read_image([save(tmp_path / "b.nii.gz", ramp(), OBLIQUE + 1e-3)])
    check_same_grid(tmp_path / "b.nii.gz", second, tmp_path / "a.nii.gz", first)


def no_contrast() -> np.ndarray:
    return np.full(SHAPE, 3.0, np.float32)


def with_value(value: float) -> np.ndarray:
    array = ramp()
    array[1, 2, 1] = value
    return array


BAD_HEADERS = {
    "zero spacing": ({"pixdim": [1, 1, 0, 4, 0, 0, 0, 0]}, "voxels measure 1 × 0 × 4"),
    "negative spacing": ({"pixdim": [1, 1, 1, -4, 0, 0, 0, 0]}, "voxels measure 1 × 1 × -4"),
    "infinite spacing": ({"pixdim": [1, np.inf, 1, 4, 0, 0, 0, 0]}, "voxels measure inf"),
    "metres told as mm": ({"srow_z": [-1e5, 0, 0, 0]}, "voxels measure 100000"),
    "nanometres": (
        {"srow_z": [-1e-4, 0, 0, 0], "srow_y": [0, -1.5, 0, 0]},
        "expected 0.001 to 100",
    ),
    "singular affine": ({"srow_x": [0, 0, 0, 0]}, "affine is singular"),
    "two parallel axes": ({"srow_y": [-1, 0, 0, 0], "srow_z": [-1, 0, 0, 0]}, "singular"),
    "affine of NaN": ({"srow_x": [np.nan, 0, 4, 0]}, "affine is not finite"),
    "no shape": ({"dim": [0, 5, 6, 3, 1, 1, 1, 1]}, "shape is ()"),
    "a plane": ({"dim": [2, 5, 18, 1, 1, 1, 1, 1]}, r"shape is (5, 18)"),
    "no voxels": ({"dim": [3, 5, 6, 0, 1, 1, 1, 1]}, r"shape is (5, 6, 0)"),
    "negative size": ({"dim": [3, 5, -6, 3, 1, 1, 1, 1]}, r"shape is (5, -6, 3)"),
    "huge": ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "header claims 131060.0 GiB"),
    "unknown type": ({"datatype": 999}, "unknown type 999"),
    "bits": ({"datatype": 1}, "voxels are binary"),
    "metres": ({"xyzt_units": 1}, "unit of length is metre"),
    "data far off": ({"vox_offset": 1e30}, "header claims"),
    "data in the header": ({"vox_offset": 0}, "its voxels start at byte 0, in the header"),
    "half of a pair": ({"magic": b"ni1", "vox_offset": 0}, "header of a .hdr and .img pair"),
    "data nowhere": ({"vox_offset": np.nan}, "cannot be read"),
    "more voxels than bytes": ({"dim": [3, 5, 6, 300, 1, 1, 1, 1]}, "bytes are missing"),
    "fewer voxels than bytes": ({"dim": [3, 5, 6, 2, 1, 1, 1, 1]}, "goes on after its last voxel"),
    "more than gzip can hold": ({"dim": [3, 5, 600, 600, 1, 1, 1, 1]}, "cannot lie in"),
    "not NIfTI": ({"magic": b"abc"}, "cannot be read"),
    "infinite intercept": ({"scl_slope": 1, "scl_inter": np.inf}, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_headers_are_refused(file, case):
    fields, message = BAD_HEADERS[case]
    expect_refusal(read_image, [save(file, ramp(), **fields)], message)


@pytest.mark.parametrize(
    ("length", "wrong"), [(-9, "9 bytes are missing"), (4, "4 bytes too many")]
)
@pytest.mark.parametrize("read", [lambda path: read_image([path]), read_labels, read_geometry])
def test_a_plain_file_is_as_long_as_its_header_says(tmp_path, read, length, wrong):
    path = save(tmp_path / "a.nii", ramp())
    os.truncate(path, path.stat().st_size + length)
    expect_refusal(read, path, wrong)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nothing_of_a_claimed_size_is_allocated(tmp_path, name):
    claim = {"dim": [3, 1000, 1000, 500, 1, 1, 1, 1]}  # 1.9 GiB of float32
    noise = np.random.default_rng(0).normal(size=(50, 40, 30)).astype(np.float32)
    path = save(tmp_path / name, noise, **claim)
    tracemalloc.start()
    expect_refusal(read_image, [path], "")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_gzip_bomb_is_refused_unread(file):
    # As float32 128 MiB of zeros, over and over: 2 GiB less what the limit leaves for the header.
    piece, pieces = 2**25, 60
    header = save(file.with_name("a.nii"), ramp(), dim=[3, 1024, 1024, 480, 1, 1, 1, 1])
    assert piece * pieces == 1024 * 1024 * 480 * 4
    start = gzip.compress(header.read_bytes()[:352])
    file.write_bytes(start + gzip.compress(bytes(piece)) * pieces)
    tracemalloc.start()
    expect_refusal(read_image, [file], "its 1.9 GiB are packed 10")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_frames_beyond_the_limit_are_refused(file):
    volume = read_image([save(file, ramp(), np.diag([50.0, 50, 50, 1]))])
    # By hand: in 3-D each voxel would become 2000³ of 0.025 mm; 5 · 6 · 3 · 2000³ · 4 / 2³⁰.
    with pytest.raises(InputError, match=r"case.nii.gz: its voxels of 50 × 50 × 50 mm make 2682.2"):
        frame_grid(volume, 3, (0.025, 0.025, 0.025))


def test_a_broken_extension_is_nobodys_business(file):
    image = nib.Nifti1Image(ramp(), OBLIQUE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"whatever"))
    content = bytearray(image.to_bytes())
    assert content[348] == 1  # an extension follows
    content[352:356] = (7).to_bytes(4, "little")  # of a size that cannot be
    file.write_bytes(gzip.compress(bytes(content)))
    np.testing.assert_array_equal(read_image([file]).array[..., 0], ramp())


def test_the_limit_counts_bytes():
    # The "huge" header above claims 32767³ float32 voxels.
    assert round(32767**3 * 4 / 1024**3) == 131060
    assert LARGEST_BYTES == 2 * 2**30


def test_sheared_axes_are_refused(file):
    sheared = np.diag([1.0, 1, 4, 1])
    sheared[0, 1] = 1 / np.sqrt(3)  # the second axis leans by 30 degrees
    expect_refusal(read_image, [save(file, ramp(), sheared)], "its axes meet at 60.0 degrees")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (with_value(np.nan), "1 voxels are NaN, infinite"),
        (with_value(np.inf), "1 voxels are NaN, infinite"),
        (with_value(3).astype(np.float64) * 1e300, "beyond float32"),
        (with_value(-2e38), "reach from -2e+38 to"),
        (no_contrast(), "every voxel is 3"),
        (ramp(np.float32) * np.float32(1e-44), "voxels differ by 8"),
        (ramp(np.complex64), "its voxels are complex64"),
        (np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), "its voxels are RGB"),
        (np.stack([ramp()] * 2, axis=-1), r"its shape is (5, 6, 3, 2)"),
    ],
    ids=["NaN", "Inf", "overflow", "huge", "constant", "denormal", "complex", "RGB", "series"],
)
def test_bad_voxels_are_refused(file, array, message):
    expect_refusal(read_image, [save(file, array)], message)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (with_value(2.5), "label 2.5 is not a whole number"),
        (with_value(np.nan), "label nan is not a whole number"),
        (with_value(np.inf), "to inf"),
        (with_value(-1), "labels run from -1"),
        (with_value(256), "to 256"),
    ],
)
def test_bad_labels_are_refused(file, array, message):
    expect_refusal(read_labels, save(file, array), message)


def test_whole_numbers_of_any_type_are_labels(file):
    save(file, ramp(np.float64))
    assert read_labels(file).array.dtype == np.uint8
    np.testing.assert_array_equal(read_labels(file).array, ramp())


def test_damaged_files_are_refused(file, tmp_path):
    whole = save(file, np.random.default_rng(0).normal(size=(20, 20, 20))).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    expect_refusal(read_image, [file], "cannot be read")
    file.write_bytes(whole[:-8])
    expect_refusal(read_image, [file], "cannot be read")  # only the checksum is missing
    broken = bytearray(whole)
    broken[-6] ^= 1
    file.write_bytes(bytes(broken))
    expect_refusal(read_image, [file], "CRC check failed")
    file.write_bytes(b"this is a text file, not a scan")
    expect_refusal(read_image, [file], "Not a gzipped file")
    file.write_bytes(gzip.compress(b"text"))
    expect_refusal(read_image, [file], "shorter than a NIfTI header")
    file.write_bytes(gzip.compress(b"text" * 200))
    expect_refusal(read_image, [file], "its content is not NIfTI")
    file.write_bytes(b"")
    expect_refusal(read_image, [file], "cannot be read")
    expect_refusal(read_image, [tmp_path / "none.nii.gz"], "no such file")
    (tmp_path / "scan.mha").touch()
    expect_refusal(read_image, [tmp_path / "scan.mha"], "not a NIfTI name")


@pytest.fixture(scope="session")
def header_bytes(tmp_path_factory) -> bytes:
    return save(tmp_path_factory.mktemp("fuzz") / "a.nii", ramp(np.int16)).read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.integers(0, 351), st.integers(0, 255), min_size=1, max_size=4))
def test_any_damage_to_a_header_is_read_or_refused(header_bytes, tmp_path_factory, changes):
    content = bytearray(header_bytes)
    for place, value in changes.items():
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "fuzz.nii"
    path.write_bytes(content)
    for read in (lambda p: read_image([p]), read_labels, read_geometry):
        try:
            volume = read(path)
        except InputError:
            continue
        assert volume.array.shape[:3] == nib.load(path).shape[:3]
        assert np.isfinite(volume.affine).all()


def test_geometry_is_that_of_the_image_without_its_voxels(file):
    save(file, ramp())
    geometry, image = read_geometry(file), read_image([file])
    assert frame_grid(geometry, 2, None) == frame_grid(image, 2, None)
    assert geometry.array.strides == (0, 0, 0)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_frames_of_a_file_come_back_to_its_grid(file, dimensions):
    volume = read_image([save(file, ramp())])
    grid = frame_grid(volume, dimensions, None)
    frames = to_frames(volume.array, grid, 1)
    # By hand: canonical axis R is the file's third, A the second backwards, S the first backwards.
    canonical = volume.array.transpose(2, 1, 0, 3)[:, ::-1, ::-1]
    np.testing.assert_array_equal(frames, canonical if dimensions == 2 else canonical[None])
    np.testing.assert_array_equal(from_frames(frames, grid, 1), volume.array)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (1, 4), (3, 3)])
@pytest.mark.parametrize("units", ["mm", "unknown"])
@pytest.mark.parametrize("frames", [(), (1,)])
def test_masks_lie_on_their_scan(file, tmp_path, kind, codes, units, frames):
    scan = kind(ramp(np.int16).reshape(*SHAPE, *frames), np.diag([2, 3, 4, 1.0]))
    scan.set_qform(OBLIQUE if codes[0] else None, codes[0])
    scan.set_sform(OBLIQUE if codes[1] else None, codes[1])
    scan.header.set_zooms((1, 1.5, 4, *frames))
    scan.header.set_xyzt_units(units, "sec")
    scan.header["descrip"] = b"Name of the patient"
    scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Name of the patient"))
    scan.header.set_slope_inter(2, 1)
    scan.to_filename(file)
    like = read_image([file])
    mask = (ramp() % 3).astype(np.uint8)
    write_mask(tmp_path / "mask.nii.gz", mask, like)

    scan, written = nib.load(file), nib.load(tmp_path / "mask.nii.gz")
    assert type(written) is kind
    assert written.get_data_dtype() == np.uint8
    assert written.shape == scan.shape
    np.testing.assert_array_equal(np.asarray(written.dataobj).reshape(SHAPE), mask)
    np.testing.assert_array_equal(written.affine, scan.affine)
    np.testing.assert_array_equal(written.get_qform(), scan.get_qform())
    np.testing.assert_array_equal(written.get_sform(), scan.get_sform())
    for field in ("qform_code", "sform_code", "xyzt_units", "pixdim"):
        np.testing.assert_array_equal(written.header[field], scan.header[field])
    assert not np.isfinite(written.header["scl_slope"]) or written.header["scl_slope"] == 1
    assert b"patient" not in gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case.nii.gz", "mask.nii.gz"]
    np.testing.assert_array_equal(read_labels(tmp_path / "mask.nii.gz").array, mask)


def test_a_mask_that_fails_leaves_nothing(file, tmp_path, monkeypatch):
    like = read_image([save(file, ramp())])

    def full(self, target):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_mask(tmp_path / "mask.nii.gz", np.zeros(SHAPE, np.uint8), like)
    assert [p.name for p in tmp_path.iterdir()] == ["case.nii.gz"]


def test_probabilities_lie_on_their_scan(file, tmp_path):
    like = read_image([save(file, ramp())])
    likely = np.random.default_rng(0).random((*SHAPE, 4))
    write_probabilities(tmp_path / "p.nii.gz", likely, like)
    written = nib.load(tmp_path / "p.nii.gz")
    assert written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(written.get_fdata(), likely.astype(np.float32))
    np.testing.assert_array_equal(written.affine, like.affine)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_images_of_our_own_come_back(file, dtype):
    write_image(file, ramp(dtype), OBLIQUE)
    written = nib.load(file)
    assert written.get_data_dtype() == dtype
    assert written.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(written.get_qform(), OBLIQUE, atol=1e-5)
    np.testing.assert_array_equal(read_image([file]).array[..., 0], ramp())
    first = file.read_bytes()
    write_image(file, ramp(dtype), OBLIQUE)
    assert file.read_bytes() == first


def expect_refusal(read, source, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(source)
    text = str(caught.value)
    assert message in text
    assert text.startswith(str(source[0] if isinstance(source, list) else source))
    assert "\n" not in text
