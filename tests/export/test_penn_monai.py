"""The parts of a MONAI bundle that no run of a bundle in ``test_exporting.py`` reaches."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from penn_jax.export.penn_monai import SaveMaskd, ToFramesd, find_scans


def _touch(folder, *names):
    for name in names:
        (folder / name).touch()


def test_channels_are_put_together_by_the_name_of_their_case(tmp_path):
    _touch(tmp_path, "b_0001.nii", "b_0000.nii", "a_0000.nii.gz", "a_0001.nii.gz")
    _touch(tmp_path, "._a_0000.nii.gz", "notes.txt")
    assert find_scans(str(tmp_path), ["T1", "T2"]) == [
        {"image": [str(tmp_path / f"{case}_{channel}") for channel in channels]}
        for case, channels in (
            ("a", ("0000.nii.gz", "0001.nii.gz")),
            ("b", ("0000.nii", "0001.nii")),
        )
    ]


def test_one_channel_needs_no_number(tmp_path):
    _touch(tmp_path, "a_0000.nii", "b.nii.gz", "c_0017.nii")
    found = [scan["image"] for scan in find_scans(str(tmp_path), ["T1"])]
    assert found == [[str(tmp_path / name)] for name in ("a_0000.nii", "b.nii.gz", "c_0017.nii")]


@pytest.mark.parametrize(
    ("names", "channels", "said"),
    [
        # As many first channels as second ones, but of different patients.
        (["a_0000.nii", "b_0001.nii"], 2, "found a_0000, expected a_0000, a_0001"),
        (["a_0000.nii", "a_0001.nii", "a_0002.nii"], 2, "found a_0000, a_0001, a_0002"),
        (["a.nii", "a_0000.nii.gz"], 1, "found a, a_0000"),
        (["notes.txt"], 1, "expected scans"),
    ],
)
def test_scans_that_do_not_make_cases_are_told(tmp_path, names, channels, said):
    _touch(tmp_path, *names)
    with pytest.raises(ValueError, match=said):
        find_scans(str(tmp_path), ["T1", "T2"][:channels])


def test_a_scan_that_is_not_finite_is_refused():
    scan = torch.full((1, 3, 3, 3), float("nan"))
    meta = {"filename_or_obj": "a.nii", "original_affine": np.eye(4), "spatial_shape": (3, 3, 3)}
    with pytest.raises(ValueError, match=r"a\.nii: expected finite intensities"):
        ToFramesd("image", 2, None)({"image": MetaTensor(scan, meta=meta)})


def test_a_mask_never_overwrites_its_scan(tmp_path):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.float32), np.eye(4)), path)
    before = path.read_bytes()
    mask = MetaTensor(torch.zeros(1, 3, 3, 3), meta={"filename_or_obj": str(path)})
    with pytest.raises(ValueError, match="is the scan itself"):
        SaveMaskd("pred", str(tmp_path))({"pred": mask})
    assert path.read_bytes() == before
    SaveMaskd("pred", str(tmp_path / "masks"))({"pred": mask})
    assert not np.asarray(nib.load(tmp_path / "masks" / "a.nii.gz").dataobj).any()
