"""Which files count as scans."""

import os

import pytest

from penn_jax.data.files import check_file, nifti_files, stem
from penn_jax.types import InputError


def test_files_are_told_by_their_ending_and_sorted(tmp_path):
    for name in ("b.nii", "a.nii.gz", ".hidden.nii.gz", "notes.txt", "c.nii.gz.part"):
        (tmp_path / name).touch()
    assert [path.name for path in nifti_files(tmp_path.iterdir())] == ["a.nii.gz", "b.nii"]
    assert [stem(path) for path in nifti_files(tmp_path.iterdir())] == ["a", "b"]


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda path: path.mkdir(), "a folder"),
        (os.mkfifo, "a pipe or device"),
        (lambda path: path.symlink_to("nowhere"), "a link to nowhere, which is no file"),
        (lambda path: path.symlink_to(path.name), "a link to a.nii.gz, which is no file"),
        (lambda path: path.symlink_to("/dev/null"), "a link to /dev/null, which is no file"),
        (lambda path: None, "no such file or folder"),
    ],
    ids=["folder", "pipe", "dangling", "loop", "device", "nothing"],
)
def test_what_is_no_file_is_refused_unopened(tmp_path, make, wrong):
    make(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=f"a.nii.gz: {wrong}, expected a NIfTI file"):
        check_file(tmp_path / "a.nii.gz")


def test_a_link_inside_the_root_is_a_file_of_it(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.nii.gz").touch()
    (root / "b.nii.gz").symlink_to("a.nii.gz")
    check_file(root / "b.nii.gz", root)
    beside = tmp_path / "root and more"  # its path begins like the root's
    beside.mkdir()
    (beside / "x.nii.gz").touch()
    (root / "c.nii.gz").symlink_to(beside / "x.nii.gz")
    with pytest.raises(InputError, match=r"c.nii.gz: a link to .*root and more/x.nii.gz"):
        check_file(root / "c.nii.gz", root)
    check_file(root / "c.nii.gz")
