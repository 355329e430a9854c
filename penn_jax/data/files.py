"""Which files of a folder are scans, by their names: nothing is read."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from penn_jax.types import InputError

ENDINGS = (".nii.gz", ".nii")

_UNPRINTABLE = ("Cc", "Cs")
"""Unicode's control characters, and what stands for the bytes of a name that is not UTF-8."""


def stem(path: Path) -> str:
    """The name of a file without its ``.nii.gz`` or ``.nii``."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def nifti_files(paths: Iterable[Path], root: Path | None = None) -> list[Path]:
    """The NIfTI files among those of a folder, in the order of their names.

    Args:
        paths: what the folder holds; hidden files are a file manager's, not scans.
        root: the folder that no link may lead out of, None where links may lead anywhere.

    Raises:
        InputError: as ``check_file``.
    """
    found = sorted(p for p in paths if p.name.lower().endswith(ENDINGS) and p.name[0] != ".")
    for path in found:
        check_file(path, root)
    return found


def check_file(path: Path, root: Path | None = None) -> None:
    """Make sure that a file can be read as what its name says, and lies where it seems to lie.

    Args:
        path: of the file.
        root: as for ``nifti_files``.

    Raises:
        InputError: no NIfTI name or an unprintable one, not a file, or a link out of the root.
    """
    check_name(path)
    if not path.is_file():
        wrong = "no such file or folder"
        if path.is_symlink():
            wrong = f"a link to {path.readlink()}, which is no file"
        elif path.exists():
            wrong = "a folder" if path.is_dir() else "a pipe or device"
        raise InputError(path, wrong, "a NIfTI file", "check the path")
    if not path.name.endswith(ENDINGS):
        remedy = "rename it" if path.name.lower().endswith(ENDINGS) else "convert it to NIfTI"
        raise InputError(path, "not a NIfTI name", ".nii.gz or .nii", remedy)
    if root is not None:
        check_inside(path, root)


def check_name(path: Path) -> None:
    """Make sure that a name can be shown.

    Raises:
        InputError: it cannot.
    """
    if any(unicodedata.category(letter) in _UNPRINTABLE for letter in path.name):
        wrong = "control characters or broken UTF-8 in its name"
        raise InputError(path, wrong, "a name of printable characters", "rename it")


def check_inside(path: Path, root: Path) -> None:
    """Make sure that no link on the way leads out of a folder: what lies there is unknown.

    Raises:
        InputError: the file lies elsewhere.
    """
    # Not Path.resolve: it fails on a loop of links.
    there = Path(os.path.realpath(path))
    if not there.is_relative_to(os.path.realpath(root)):
        remedy = "copy the file, or give the folder that holds both"
        raise InputError(path, f"a link to {there}", f"a file inside of {root}", remedy)
