"""DICOM series as volumes, masks as DICOM SEG, and whom nobody may be told of."""

import gzip
import logging
import sys
import traceback
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from penn_jax import engine, segment, viewer
from penn_jax.cli import main
from penn_jax.config import Config, ModelConfig, PatchConfig
from penn_jax.data.dicom_seg import write_segmentation
from penn_jax.data.scans import find_scans
from penn_jax.data.volume import read_geometry, read_image
from penn_jax.model.network import Network, initialise
from penn_jax.types import InputError

pydicom = pytest.importorskip("pydicom", reason="penn-jax[dicom] is not installed")
highdicom = pytest.importorskip("highdicom", reason="penn-jax[dicom] is not installed")
from pydicom.dataset import FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

NAME, BIRTH, IDENTITY = "Grünwald^Ottilie", "19610504", "MRN-7751934"
"""Must turn up nowhere."""
SECRETS = ("Grünwald", "Ottilie", "19610504", "7751934", "Mercy Hospital", "Quackenbush")


def write_series(
    folder: Path,
    array: np.ndarray,
    orientation=(1, 0, 0, 0, 1, 0),
    position=(0.0, 0.0, 0.0),
    spacing=(1.0, 1.0, 4.0),
    order=None,
    slopes=None,
    intercepts=None,
    **tags,
) -> Path:
    """Write an array (columns, rows, slices) of whole numbers, slices along the normal.

    Args:
        spacing: between columns, rows and slices, mm.
        order: number of the slice in each file; by default as they lie.
    """
    folder.mkdir(parents=True, exist_ok=True)
    directions = np.reshape(orientation, (2, 3)).astype(float)
    normal = np.cross(*directions)
    series, frame, study = generate_uid(), generate_uid(), generate_uid()
    count = array.shape[2]
    for file, number in enumerate(range(count) if order is None else order):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SpecificCharacterSet = "ISO_IR 100"
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, generate_uid()
        data.PatientName, data.PatientID = NAME, IDENTITY
        data.PatientBirthDate, data.PatientSex = BIRTH, "F"
        data.InstitutionName, data.ReferringPhysicianName = "Mercy Hospital", "Quackenbush^Ada"
        data.StudyInstanceUID, data.SeriesInstanceUID = study, series
        data.FrameOfReferenceUID = frame
        data.StudyDate, data.StudyTime, data.StudyID = "20260101", "120000", "1"
        data.AccessionNumber = ""
        data.Modality, data.SeriesNumber, data.InstanceNumber = "MR", 3, int(number) + 1
        data.SeriesDescription = "T1 sag, Ottilie"
        data.ImageOrientationPatient = [f"{x:.10g}" for x in directions.ravel()]
        place = np.asarray(position, float) + number * spacing[2] * normal
        data.ImagePositionPatient = [f"{x:.10g}" for x in place]
        data.PixelSpacing = [spacing[1], spacing[0]]
        data.SliceThickness = spacing[2]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.Columns, data.Rows = array.shape[:2]
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        if slopes is not None:
            data.RescaleSlope, data.RescaleIntercept = slopes[number], intercepts[number]
        data.PixelData = array[..., number].T.astype("<u2").tobytes()
        for name, value in tags.items():
            setattr(data, name, value)
        data.save_as(folder / f"IM{file:04d}", enforce_file_format=True)
    return folder


def grid(orientation=(1, 0, 0, 0, 1, 0), position=(0, 0, 0), spacing=(1.0, 1.0, 4.0)):
    """From voxel to mm in RAS, by hand: of left, posterior, up the first two change their signs."""
    row, column = np.reshape(orientation, (2, 3)).astype(float)
    affine = np.eye(4)
    for axis, direction in enumerate((row, column, np.cross(row, column))):
        affine[:3, axis] = np.array((-1, -1, 1)) * direction * spacing[axis]
    affine[:3, 3] = np.array((-1, -1, 1)) * position
    return affine


def picture(shape=(7, 5, 4), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4096, shape)


def assert_no_secret(*texts: str) -> None:
    for text in texts:
        assert not [secret for secret in SECRETS if secret.lower() in text.lower()], text


SAGITTAL = (0, 1, 0, 0, 0, -1)


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 0, 1, 0), SAGITTAL, (1, 0, 0, 0, 0, -1), (-1, 0, 0, 0, 1, 0)],
    ids=["axial", "sagittal", "coronal", "axial, turned"],
)
def test_a_series_is_a_volume_in_ras_whatever_the_order_of_its_files(tmp_path, orientation):
    array, spacing, position = picture(), (0.75, 1.25, 3.5), (-20.5, 31.0, 7.25)
    folder = write_series(
        tmp_path / "scan", array, orientation, position, spacing, order=(2, 0, 3, 1)
    )
    found = read_image([folder])
    np.testing.assert_array_equal(found.array[..., 0], array)
    np.testing.assert_allclose(found.affine, grid(orientation, position, spacing), atol=1e-5)
    np.testing.assert_allclose(found.spacing, spacing, rtol=1e-6)
    where = read_geometry(folder)
    assert where.array.shape == array.shape
    np.testing.assert_array_equal(where.affine, found.affine)


def test_an_oblique_series_lies_where_every_pixel_says_it_lies(tmp_path):
    turn = Rotation.from_euler("xyz", (17, -31, 44), degrees=True).as_matrix()
    orientation = (*turn[:, 0], *turn[:, 1])
    array, position, spacing = picture(), (12.0, -80.0, 33.0), (0.9, 0.8, 5.0)
    folder = write_series(
        tmp_path / "scan", array, orientation, position, spacing, order=(3, 1, 0, 2)
    )
    affine = read_image([folder]).affine
    # PS3.3, C.7.6.2.1.1: P = S + X dx i + Y dy j, for each file by itself.
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        number = data.InstanceNumber - 1
        row, column = np.reshape(data.ImageOrientationPatient, (2, 3))
        between_rows, between_columns = data.PixelSpacing
        for i, j in ((0, 0), (6, 0), (0, 4), (6, 4)):
            left_posterior_up = (
                np.array(data.ImagePositionPatient)
                + row * between_columns * i
                + column * between_rows * j
            )
            np.testing.assert_allclose(
                (affine @ (i, j, number, 1))[:3], left_posterior_up * (-1, -1, 1), atol=1e-4
            )


def test_nifti_conversion_by_another_program_lies_at_the_same_place(tmp_path):
    """highdicom builds its own volume and its own affine, in DICOM's axes: slice, row, column."""
    turn = Rotation.from_euler("xyz", (5, 12, -20), degrees=True).as_matrix()
    folder = write_series(
        tmp_path / "scan", picture(), (*turn[:, 0], *turn[:, 1]), (3, 4, 5), order=(1, 0, 3, 2)
    )
    theirs = highdicom.get_volume_from_series([pydicom.dcmread(p) for p in folder.iterdir()])
    ours = read_image([folder])
    first = theirs.affine @ (0, 0, 0, 1)
    if np.allclose(first[:3] * (-1, -1, 1), ours.affine[:3, 3], atol=1e-3):
        stack, last = theirs.array, theirs.affine
    else:  # it counts the slices from the other end
        flipped = theirs.flip_spatial(0)
        stack, last = flipped.array, flipped.affine
    np.testing.assert_array_equal(ours.array[..., 0], stack.transpose(2, 1, 0))
    expected = np.diag((-1, -1, 1, 1)) @ last[:, (2, 1, 0, 3)]
    np.testing.assert_allclose(ours.affine, expected, atol=1e-4)


def test_each_slice_is_scaled_by_its_own_slope_and_intercept(tmp_path):
    array, slopes, intercepts = picture(), (1.0, 0.5, 2.0, 0.25), (0.0, -100.0, 7.0, 1.5)
    folder = write_series(tmp_path / "scan", array, slopes=slopes, intercepts=intercepts)
    expected = array * np.array(slopes) + np.array(intercepts)
    np.testing.assert_array_equal(read_image([folder]).array[..., 0], expected)


def test_one_slice_is_as_thick_as_it_says(tmp_path):
    folder = write_series(tmp_path / "scan", picture((6, 5, 1)), spacing=(1, 1, 2.5))
    assert read_image([folder]).spacing == (1, 1, 2.5)


def test_what_is_no_slice_is_passed_over(tmp_path):
    array = picture()
    folder = write_series(tmp_path / "scan", array)
    (folder / "notes.txt").write_text("exported by hand")
    (folder / ".DS_Store").write_bytes(b"\0")
    other = pydicom.dcmread(folder / "IM0000")
    other.Modality, other.SeriesInstanceUID = "SEG", generate_uid()
    other.save_as(folder / "segmentation")
    other.Modality = "MR"
    other.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    other.save_as(folder / "DICOMDIR", enforce_file_format=False)
    np.testing.assert_array_equal(read_image([folder]).array[..., 0], array)
    assert find_scans([folder], channels=1) == {"scan": [folder]}


def test_a_folder_of_each_channel(tmp_path):
    for channel in (0, 1):
        write_series(tmp_path / f"a_000{channel}", picture(seed=channel))
    found = find_scans([tmp_path / "a_0001", tmp_path / "a_0000"], channels=2)
    assert found == {"a": [tmp_path / "a_0000", tmp_path / "a_0001"]}
    assert read_image(found["a"]).array.shape == (7, 5, 4, 2)


# ---- what is no volume -------------------------------------------------------------------------


def altered(folder: Path, file: str, **tags) -> None:
    data = pydicom.dcmread(folder / file)
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(folder / file)


def drop(folder, file, *names):
    data = pydicom.dcmread(folder / file)
    for name in names:
        delattr(data, name)
    data.save_as(folder / file)


FAULTS = {
    "a missing slice": (
        lambda f: (f / "IM0002").unlink(),
        r"IM0001 and IM0003 lie 8 mm apart, the slices elsewhere 4 mm, expected .* none missing",
    ),
    "uneven gaps": (
        lambda f: altered(f, "IM0004", ImagePositionPatient=[0, 0, 17]),
        "IM0003 and IM0004 lie 5 mm apart",
    ),
    "gaps that grow": (
        lambda f: [
            altered(f, f"IM000{n}", ImagePositionPatient=[0, 0, z])
            for n, z in enumerate((0, 3.7, 7.6, 11.6, 15.8, 20.1))
        ],
        "mm off the line of the others, expected evenly spaced slices",
    ),
    "a tilted gantry": (
        lambda f: [
            altered(f, f"IM000{n}", ImagePositionPatient=[0, n * 1.0, n * 4.0]) for n in range(6)
        ],
        "its axes meet at 14.0 degrees|its axes meet at 76.0 degrees",
    ),
    "two at one place": (
        lambda f: altered(f, "IM0003", ImagePositionPatient=[0, 0, 8]),
        "IM0002 and IM0003 lie at one place, expected one volume; move the other echoes",
    ),
    "two series": (
        lambda f: altered(f, "IM0000", SeriesInstanceUID=generate_uid(), SeriesNumber=9),
        r"holds 2 series: number 9 \(MR, 1 images, IM0000 …\); number 3 \(MR, 5 images, IM0001 …\)",
    ),
    "a localiser": (
        lambda f: altered(f, "IM0005", ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
        "IM0005: is of another orientation than IM0000",
    ),
    "another size": (
        lambda f: altered(f, "IM0005", Rows=7, Columns=5),
        "IM0005: is of another shape than IM0000",
    ),
    "another frame of reference": (
        lambda f: altered(f, "IM0005", FrameOfReferenceUID=generate_uid()),
        "IM0005: is of another frame of reference",
    ),
    "many frames in one file": (
        lambda f: altered(f, "IM0005", NumberOfFrames=2),
        "IM0005: holds 2 frames, expected a file for each slice; convert it to NIfTI",
    ),
    "colour": (
        lambda f: altered(f, "IM0005", SamplesPerPixel=3, PhotometricInterpretation="RGB"),
        "IM0005: its pixels are RGB",
    ),
    "no position": (
        lambda f: drop(f, "IM0005", "ImagePositionPatient"),
        "IM0005: has no ImagePositionPatient",
    ),
    "a spacing of nothing": (
        lambda f: altered(f, "IM0005", PixelSpacing=[0, 1]),
        "IM0005: its position, spacing or rescaling",
    ),
    "few pixels": (
        lambda f: altered(f, "IM0005", PixelData=b"\0\0"),
        r"IM0005: cannot be read \(ValueError\)",
    ),
    "half a file": (
        lambda f: (f / "IM0005").write_bytes((f / "IM0005").read_bytes()[:700]),
        "IM0005: has no Rows",
    ),
    "an empty file": (lambda f: (f / "IM0005").write_bytes(b""), "its content is not DICOM"),
    "text": (lambda f: (f / "a.dcm").write_text("Ottilie"), "a.dcm: its content is not DICOM"),
    "a link out of the folder": (
        lambda f: (f / "IM0005").rename(f.parent / "x") and (f / "IM0005").symlink_to("../x"),
        "IM0005: a link to ",
    ),
    "no image": (
        lambda f: [altered(f, path.name, Modality="SR") for path in list(f.iterdir())],
        "no DICOM images in it",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_volume_is_refused_without_a_word_of_who_it_was(tmp_path, fault):
    folder = write_series(tmp_path / "scan", picture((7, 5, 6)))
    break_it, said = FAULTS[fault]
    break_it(folder)
    with pytest.raises(InputError, match=said) as error:
        read_image([folder])
    assert_no_secret(str(error.value))


def test_a_compressed_series_is_unpacked(tmp_path):
    array = picture()
    folder = write_series(tmp_path / "scan", array)
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        data.compress(RLELossless)
        data.save_as(path)
    np.testing.assert_array_equal(read_image([folder]).array[..., 0], array)


def test_a_compression_that_cannot_be_unpacked_is_named(tmp_path):
    folder = write_series(tmp_path / "scan", picture())
    path = folder / "IM0000"
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    data.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    data["PixelData"].VR = "OB"
    data.save_as(path)
    with pytest.raises(InputError, match=r"IM0000: its pixels \(JPEG Lossless.*pip install"):
        read_image([folder])


def test_without_the_packages_the_remedy_is_told(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "scan", picture())
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match=r"pip install 'penn-jax\[dicom\]'"):
        read_image([folder])


# ---- DICOM SEG ---------------------------------------------------------------------------------


def blobs(shape) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[1:4, 0:3, 0:3] = 1
    mask[4:6, 2:5, 1:4] = 2
    mask[6, 4, 3] = 1
    return mask


def as_volume(path: Path, folder: Path, segments: int) -> np.ndarray:
    """Read a DICOM SEG with highdicom, onto the slices of a series from first to last."""
    found = highdicom.seg.segread(path)
    headers = sorted(
        (pydicom.dcmread(p) for p in folder.iterdir()), key=lambda data: data.InstanceNumber
    )
    planes = found.get_pixels_by_source_instance(
        [data.SOPInstanceUID for data in headers],
        segment_numbers=range(1, segments + 1),
        combine_segments=True,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    return planes.transpose(2, 1, 0)


def test_a_segmentation_object_is_read_back_by_highdicom_as_it_was(tmp_path):
    turn = Rotation.from_euler("xyz", (17, -31, 44), degrees=True).as_matrix()
    folder = write_series(
        tmp_path / "scan",
        picture(),
        (*turn[:, 0], *turn[:, 1]),
        (12, -80, 33),
        (0.9, 0.8, 5),
        order=(3, 1, 0, 2),
    )
    mask, out = blobs((7, 5, 4)), tmp_path / "scan.dcm"
    write_segmentation(out, mask, ["tumour", "Wirbelkörper 椎体"], folder, "run")
    np.testing.assert_array_equal(as_volume(out, folder, 2), mask)
    found, source = highdicom.seg.segread(out), pydicom.dcmread(folder / "IM0000")
    assert found.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert found.StudyInstanceUID == source.StudyInstanceUID
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    assert found.PatientID == source.PatientID
    assert str(found.PatientName) == NAME
    assert [found.get_segment_description(n).segment_label for n in (1, 2)] == [
        "tumour",
        "Wirbelkörper 椎体",
    ]
    algorithm = found.get_segment_description(1).SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmSource) == ("run", "penn_jax")
    # In space, without the source: where highdicom places the voxels, and where we do.
    volume = found.get_volume(combine_segments=True)
    there = np.argwhere(volume.array)
    theirs = (volume.affine @ np.c_[there, np.ones(len(there))].T)[:3].T * (-1, -1, 1)
    here = np.argwhere(mask)
    ours = (read_geometry(folder).affine @ np.c_[here, np.ones(len(here))].T)[:3].T
    values = (volume.array[tuple(there.T)], mask[tuple(here.T)])
    for value in (1, 2):
        a, b = theirs[values[0] == value], ours[values[1] == value]
        a, b = a[np.lexsort(a.round(2).T)], b[np.lexsort(b.round(2).T)]
        np.testing.assert_allclose(a, b, atol=1e-3)
    assert [p.name for p in tmp_path.iterdir() if ".partial" in p.name] == []


def test_an_empty_mask_and_an_anonymous_series(tmp_path):
    folder = write_series(tmp_path / "scan", picture())
    for path in folder.iterdir():
        drop(folder, path.name, "PatientName", "PatientID", "PatientBirthDate", "StudyID")
    write_segmentation(tmp_path / "a.dcm", np.zeros((7, 5, 4), np.uint8), ["tumour"], folder, "run")
    assert not as_volume(tmp_path / "a.dcm", folder, 1).any()
    assert pydicom.dcmread(tmp_path / "a.dcm").PatientName == ""


@pytest.mark.parametrize(
    "tags",
    [{"PatientSex": "Ottilie"}, {"PatientBirthDate": "Ottilie 1961"}, {"PatientName": "Ottilie"}],
    ids=str,
)
def test_odd_words_about_the_patient_are_repeated_not_told(tmp_path, tags, capfd, caplog):
    folder = write_series(tmp_path / "scan", picture(), **tags)
    write_segmentation(tmp_path / "a.dcm", blobs((7, 5, 4)), ["a", "b"], folder, "run")
    assert_no_secret(*capfd.readouterr(), caplog.text)
    ((name, value),) = tags.items()
    assert pydicom.dcmread(tmp_path / "a.dcm")[name].value == value


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"SOPClassUID": "1.2.3"}, r"no segmentation object can be made of it \(KeyError\)"),
        ({"FrameOfReferenceUID": ""}, "a slice of it has no FrameOfReferenceUID"),
    ],
    ids=str,
)
def test_a_series_that_no_object_can_refer_to_is_told_without_its_words(tmp_path, tags, said):
    folder = write_series(tmp_path / "scan", picture(), **tags)
    with pytest.raises(InputError, match=said) as error:
        write_segmentation(tmp_path / "a.dcm", blobs((7, 5, 4)), ["a", "b"], folder, "run")
    assert_no_secret("".join(traceback.format_exception(error.value)))
    assert [path.name for path in tmp_path.iterdir()] == ["scan"]


# ---- penn predict ------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder that ``penn predict`` takes for a trained run of three classes."""
    config = Config(
        model=ModelConfig(stem=2, channels=(4, 6), blocks=1), patches=PatchConfig(size=(8, 8))
    )
    card = {
        "channels": ["T1"],
        "labels": {"background": 0, "tumour": 1, "cord": 2},
        "label_values": [0, 7, 9],
        "dimensions": 2,
        "spacing": None,
        "data_hash": "0",
        "fold": 0,
        "task": "segmentation",
    }
    shapes = jax.eval_shape(lambda: initialise(Network(config.model, 3), jax.random.key(0), 1, 2))
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        name = jax.tree_util.keystr(path)
        if "kernel" not in name:
            return np.full(leaf.shape, float("scale" in name or "var" in name), np.float32)
        return rng.normal(0, 1.5 * np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype("f4")

    variables = jax.tree_util.tree_map_with_path(drawn, shapes)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    monkeypatch.setattr(engine, "load_model", lambda path: (config, card, variables))
    return tmp_path / "run"


def test_a_series_in_a_mask_and_a_segmentation_object_out_and_nobody_is_named(
    run, tmp_path, capfd, caplog
):
    caplog.set_level(logging.DEBUG)
    # A name without ^ is one that highdicom warns of, quoting it.
    folder = write_series(
        tmp_path / "spine", picture((20, 24, 3)), SAGITTAL, order=(1, 2, 0), PatientName="Ottilie"
    )
    out = tmp_path / "masks"
    code = main([*map(str, ("predict", run, folder, "--out", out)), "--dicom-seg"])
    said = capfd.readouterr()
    assert (code, said.err) == (0, "")
    assert_no_secret(said.out, said.err, caplog.text)
    for path in out.iterdir():
        if path.suffix not in (".dcm", ".gz"):
            assert_no_secret(path.read_text(encoding="utf-8"))
    mask = nib.load(out / "spine.nii.gz")
    np.testing.assert_allclose(mask.affine, grid(SAGITTAL), atol=1e-6)
    values = np.asarray(mask.dataobj)
    assert set(np.unique(values)) == {0, 7, 9}
    # Segments are numbered by class; masks hold the label's own value.
    segments = as_volume(out / "spine.dcm", folder, 2)
    np.testing.assert_array_equal(np.array([0, 7, 9])[segments], values)
    assert_no_secret(gzip.decompress((out / "spine.nii.gz").read_bytes()).decode("latin-1"))


def test_the_same_voxels_as_nifti_give_the_same_mask(run, tmp_path):
    array = picture((20, 24, 3))
    folder = write_series(tmp_path / "series", array, SAGITTAL)
    (tmp_path / "scans").mkdir()
    nib.save(
        nib.Nifti1Image(array.astype(np.int16), grid(SAGITTAL)), tmp_path / "scans" / "nifti.nii"
    )
    segment.predict([run, folder, tmp_path / "scans"], tmp_path / "masks", engine="jax")
    masks = [nib.load(tmp_path / "masks" / f"{name}.nii.gz") for name in ("series", "nifti")]
    np.testing.assert_array_equal(*(np.asarray(mask.dataobj) for mask in masks))
    np.testing.assert_allclose(masks[0].affine, masks[1].affine, atol=1e-6)


def test_a_series_without_a_segmentation_object_keeps_no_other_from_its_own(run, tmp_path):
    odd = write_series(tmp_path / "odd", picture((20, 24, 3)), SOPClassUID="1.2.3")
    good = write_series(tmp_path / "good", picture((20, 24, 3), seed=1))
    out = tmp_path / "masks"
    with pytest.raises(InputError, match="no segmentation object can be made of it"):
        segment.predict([run, odd, good], out, dicom_seg=True, engine="jax")
    found = {path.name for path in out.iterdir()}
    assert {"odd.nii.gz", "good.nii.gz", "good.dcm"} <= found
    assert "odd.dcm" not in found


def test_a_series_can_be_viewed(tmp_path, monkeypatch):
    (tmp_path / "widget.js").touch()
    monkeypatch.setattr(viewer, "_niivue", lambda: tmp_path / "widget.js")
    array = picture((20, 24, 3))
    folder = write_series(tmp_path / "series", array, SAGITTAL)
    mask = tmp_path / "mask.nii"
    nib.save(nib.Nifti1Image((array > 2000).astype(np.uint8), grid(SAGITTAL)), mask)
    scene, files = viewer._scene(folder, [mask], tmp_path)
    shown = nib.load(files[scene["volumes"][0]["file"]])
    np.testing.assert_array_equal(np.asarray(shown.dataobj), array)
    np.testing.assert_allclose(shown.affine, grid(SAGITTAL), atol=1e-6)


def test_a_segmentation_object_needs_a_series_and_a_place_of_its_own(run, tmp_path):
    folder = write_series(tmp_path / "series", picture((20, 24, 3)))
    scan = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(picture((20, 24, 3)).astype(np.int16), np.eye(4)), scan)
    out = tmp_path / "masks"
    with pytest.raises(InputError, match=r"scan.nii: is no DICOM series"):
        segment.predict([run, folder, scan], out, dicom_seg=True)
    with pytest.raises(InputError, match="is the folder of the series"):
        segment.predict([run, folder], folder)
    assert not out.exists()
    out.mkdir()
    (out / "series.dcm").touch()
    with pytest.raises(InputError, match=r"series.dcm: exists"):
        segment.predict([run, folder], out, dicom_seg=True)
