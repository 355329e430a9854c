"""Finds the scans to predict among files and folders, by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from penn_jax.data.dicom_slices import is_series
from penn_jax.data.files import check_file, check_name, nifti_files, stem
from penn_jax.types import InputError

_CHANNEL = re.compile(r"_(\d{4})$")


def find_scans(inputs: Sequence[Path], channels: int) -> dict[str, list[Path]]:
    """The files of each case, by its name.

    Args:
        inputs: files and folders; a folder gives the NIfTI files in it, none of which may be a link
            out of it, and where there are none but DICOM files, it is one scan, named as it is. A
            file may be a link to anywhere.
        channels: how many files a case must have.

    Raises:
        InputError: nothing found, something that is no file or has no usable name, a channel
            missing, or two cases of one name.
    """
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = nifti_files(path.iterdir(), path)
            if not found and is_series(path):
                found = [path if path.name else path.resolve()]
                check_name(found[0])
            if not found:
                expected = "files .nii.gz or .nii, or a DICOM series"
                raise InputError(path, "no scans", expected, "give another folder")
            files += found
        else:
            check_file(path)
            files.append(path)

    stems = {stem(path) for path in files}
    cases: dict[str, dict[int, Path]] = {}
    for path in files:
        name = stem(path)
        channel = 0
        match = _CHANNEL.search(name)
        # With one channel only _0000 is a channel's number: a name may end in other digits.
        if match and (channels > 1 or match.group(1) == "0000"):
            name, channel = name[: match.start()], int(match.group(1))
        elif match and f"{name[: match.start()]}_0000" in stems:
            wrong = f"a further channel of {name[: match.start()]}"
            raise InputError(path, wrong, "one channel, as the model was trained on", "remove it")
        if name in ("", ".", ".."):
            raise InputError(path, "no name but its channel", "<case>_0000", "rename it")
        parts = cases.setdefault(name, {})
        if channel in parts:
            raise InputError(
                path, f"is the same case as {parts[channel]}", "one scan a name", "rename one"
            )
        parts[channel] = path
    for name, parts in cases.items():
        if sorted(parts) != list(range(channels)):
            raise InputError(
                next(iter(parts.values())),
                f"case {name!r} has channels {sorted(parts)}",
                f"{channels} channels, {name}_0000 and on, as the model was trained on",
                "add or remove files",
            )
    return {name: [parts[channel] for channel in range(channels)] for name, parts in cases.items()}
