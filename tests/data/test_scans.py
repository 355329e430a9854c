"""Scans to predict, found by name."""

import pytest

from penn_jax.data.scans import find_scans
from penn_jax.types import InputError


def test_scans_are_found_by_case_and_channel(tmp_path):
    for name in ("b_0000", "b_0001", "a b_0000", "a b_0001"):
        (tmp_path / f"{name}.nii.gz").touch()
    found = find_scans([tmp_path], channels=2)
    assert list(found) == ["a b", "b"]
    assert [path.name for path in found["b"]] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    with pytest.raises(InputError, match=r"channels \[0, 1\]"):
        find_scans([tmp_path / "b_0001.nii.gz", tmp_path / "b_0000.nii.gz"], channels=3)
    with pytest.raises(InputError, match="is the same case as"):
        find_scans([tmp_path, tmp_path / "b_0000.nii.gz"], channels=2)
    (tmp_path / "patient_1230.nii.gz").touch()
    assert list(find_scans([tmp_path / "patient_1230.nii.gz"], channels=1)) == ["patient_1230"]
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="not a NIfTI name"):
        find_scans([tmp_path / "notes.txt"], channels=1)


def test_a_second_channel_is_no_case_of_its_own(tmp_path):
    (tmp_path / "a_0000.nii.gz").touch()
    (tmp_path / "a_0001.nii.gz").touch()
    with pytest.raises(InputError, match=r"a_0001.nii.gz: a further channel of a, expected one"):
        find_scans([tmp_path], channels=1)


@pytest.mark.parametrize("name", ["_0000.nii.gz", "._0000.nii.gz", ".._0000.nii"])
def test_a_case_has_a_name_that_a_mask_can_have(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="no name but its channel"):
        find_scans([tmp_path / name], channels=1)


def test_links_lead_out_of_no_folder_but_may_be_given(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "real.nii.gz").touch()
    link = tmp_path / "in" / "link.nii.gz"
    link.symlink_to(tmp_path / "real.nii.gz")
    with pytest.raises(InputError, match=r"link.nii.gz: a link to .*real.nii.gz, .* copy the file"):
        find_scans([tmp_path / "in"], channels=1)
    assert find_scans([link], channels=1) == {"link": [link]}


def test_what_is_no_scan_is_refused(tmp_path):
    with pytest.raises(InputError, match="absent: no such file or folder"):
        find_scans([tmp_path / "absent"], channels=1)
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="in: no scans"):
        find_scans([tmp_path / "in"], channels=1)
    (tmp_path / "in" / "a.nii.gz").mkdir()
    with pytest.raises(InputError, match=r"a.nii.gz: a folder, expected a NIfTI file"):
        find_scans([tmp_path / "in"], channels=1)
