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
    with pytest.raises(InputError, match="not NIfTI"):
        find_scans([tmp_path / "notes.txt"], channels=1)
