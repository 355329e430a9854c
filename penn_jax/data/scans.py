"""Finds the scans to predict among files and folders: names only, nothing is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from penn_jax.data.volume import ENDINGS
from penn_jax.types import InputError

_CHANNEL = re.compile(r"_(\d{4})$")


def find_scans(inputs: Sequence[Path], channels: int) -> dict[str, list[Path]]:
    """The files of each case, by its name.

    Args:
        inputs: files and folders; a folder gives the NIfTI files in it.
        channels: how many files a case must have.

    Raises:
        InputError: nothing found, a channel missing, or two cases of one name.
    """
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = sorted(
                p
                for p in path.iterdir()
                if p.name.endswith(ENDINGS) and not p.name.startswith(".") and p.is_file()
            )
            if not found:
                raise InputError(path, "no scans", "files .nii.gz or .nii", "give another folder")
            files += found
        elif path.is_file() and path.name.endswith(ENDINGS):
            files.append(path)
        else:
            wrong = "is not NIfTI by its name" if path.exists() else "does not exist"
            raise InputError(path, wrong, "a .nii.gz or .nii file or a folder", "check the path")

    cases: dict[str, dict[int, Path]] = {}
    for path in files:
        name = path.name.removesuffix(".gz").removesuffix(".nii")
        channel = 0
        match = _CHANNEL.search(name)
        # With one channel only _0000 is a channel's number: a name may end in other digits.
        if match and (channels > 1 or match.group(1) == "0000"):
            name, channel = name[: match.start()], int(match.group(1))
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
