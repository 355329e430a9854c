"""Finds the cases of a raw folder: file names and JSON only, no voxel is read.

Three layouts, told apart by what the folder holds: ``dataset.json`` (nnU-Net raw), ``sub-*``
folders (BIDS with ``derivatives/labels``), ``images/`` (plain, with ``labels/``). In each a
``splits_final.json`` at the top is honoured.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from penn_jax.data.files import check_inside, nifti_files, stem
from penn_jax.types import IGNORE_LABEL, InputError

Part = Literal["train", "test"]

_LABEL_ENDING = r"(?:d?seg|labels?|mask|lesions?|roi)"


@dataclass(frozen=True)
class RawCase:
    """One scan as it lies in the raw folder."""

    name: str
    images: tuple[Path, ...]
    """One file for each channel."""
    label: Path | None
    subject: str
    """Cases of one subject stay on one side of a split."""
    part: Part
    """``test`` for the cases of ``imagesTs``, which no split may use."""


@dataclass(frozen=True)
class Split:
    """Names of the cases to train on and to validate on."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True)
class RawDataset:
    """All cases of a raw folder and what its JSON files say of them."""

    root: Path
    layout: Literal["nnunet", "bids", "plain"]
    channels: tuple[str, ...]
    labels: dict[str, int]
    """Value in the files of each label; empty where the layout does not say."""
    ignore: int | None
    """Value in the files of voxels to leave out, where ``dataset.json`` names one."""
    cases: tuple[RawCase, ...]
    """In the order of their names."""
    splits: tuple[Split, ...] | None


@dataclass(frozen=True)
class _DatasetJson:
    """What we read of nnU-Net's ``dataset.json``; further keys are free."""

    __pydantic_config__ = ConfigDict(extra="ignore", strict=True)

    channel_names: dict[str, str]
    labels: dict[str, int | list[int]]
    file_ending: Literal[".nii.gz", ".nii"] = ".nii.gz"


@dataclass(frozen=True)
class _SplitJson:
    __pydantic_config__ = ConfigDict(extra="forbid")

    train: list[str]
    val: list[str]


def find_cases(root: Path) -> RawDataset:
    """Recognise the layout of a raw folder and list its cases.

    Args:
        root: the raw folder.

    Returns:
        The cases in the order of their names, at least one.

    Raises:
        InputError: no known layout, no case, a name twice or unprintable, a missing or superfluous
            file, a link out of the folder, or a JSON file that contradicts the folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(root, "no such folder", "a folder of scans", "check the path")
    if _is_there(root / "dataset.json"):
        dataset = _nnunet(root)
    elif any(path.is_dir() for path in root.glob("sub-*")):
        dataset = _bids(root)
    elif (root / "images").is_dir():
        dataset = _plain(root)
    else:
        raise InputError(
            root,
            "no known layout",
            "dataset.json with imagesTr (nnU-Net), sub-* folders (BIDS) or images/",
            "arrange the scans in one of these",
        )
    if not dataset.cases:
        raise InputError(root, "no case", "at least one .nii.gz image", "check the folder")
    names = [case.name for case in dataset.cases]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise InputError(root, f"{twice[0]} is there twice", "unique case names", "rename one")
    return dataset


def _nnunet(root: Path) -> RawDataset:
    source = root / "dataset.json"
    described: _DatasetJson = _read_json(source, _DatasetJson)
    ending = described.file_ending
    keys = [str(channel) for channel in range(len(described.channel_names))]
    if not keys or sorted(described.channel_names) != sorted(keys):
        raise InputError(
            source,
            f"channel_names has the keys {', '.join(described.channel_names) or 'none'}",
            '"0", "1", … without gaps',
            "correct channel_names",
        )
    labels, ignore = _nnunet_labels(source, described.labels)
    training = _nnunet_cases(root, "Tr", "train", len(keys), ending)
    test = _nnunet_cases(root, "Ts", "test", len(keys), ending)
    if missing := next((case for case in training if case.label is None), None):
        raise InputError(
            root / "labelsTr" / f"{missing.name}{ending}",
            "no such file",
            "a label for each case of imagesTr",
            "add it, or move the case to imagesTs",
        )
    cases = tuple(sorted(training + test, key=lambda case: case.name))
    channels = tuple(described.channel_names[key] for key in keys)
    return RawDataset(root, "nnunet", channels, labels, ignore, cases, _read_splits(root, cases))


def _nnunet_labels(
    source: Path, found: dict[str, int | list[int]]
) -> tuple[dict[str, int], int | None]:
    labels: dict[str, int] = {}
    for name, value in found.items():
        if isinstance(value, list):
            raise InputError(
                source,
                f"label {name!r} is a region {value}",
                "one whole number a label",
                "regions of several labels are not supported, give each its own value",
            )
        labels[name] = value
    ignore = labels.pop("ignore", None)
    values = [*labels.values(), *([] if ignore is None else [ignore])]
    wrong = None
    if labels.get("background") != 0:
        wrong = "background is not 0"
    elif len(set(values)) < len(values):
        wrong = "two labels share a value"
    elif min(values) < 0 or max(values) > IGNORE_LABEL:
        wrong = f"a label is outside 0 to {IGNORE_LABEL}"
    elif len(labels) < 2:
        wrong = "there is no label but background"
    if wrong:
        expected = f'"background": 0 and different whole numbers up to {IGNORE_LABEL}'
        raise InputError(source, wrong, expected, "correct labels")
    return dict(sorted(labels.items(), key=lambda item: item[1])), ignore


def _nnunet_cases(root: Path, end: str, part: Part, channels: int, ending: str) -> list[RawCase]:
    folder = root / f"images{end}"
    files: dict[str, dict[int, Path]] = {}
    for path in _scans(folder, root):
        match = re.fullmatch(r"(.+)_(\d{4})", path.name.removesuffix(ending))
        if not match or not path.name.endswith(ending):
            raise InputError(
                path, "name without a channel", f"<case>_0000{ending}", "rename the file"
            )
        files.setdefault(match[1], {})[int(match[2])] = path
    labels = {p.name.removesuffix(ending): p for p in _scans(root / f"labels{end}", root)}
    _no_orphans(labels, files, folder)
    for name, found in files.items():
        if sorted(found) != list(range(channels)):
            raise InputError(
                folder / f"{name}_*{ending}",
                f"channels {', '.join(f'{c:04d}' for c in sorted(found))}",
                f"{channels} from 0000 as in dataset.json",
                "add or remove files",
            )
    return [
        RawCase(
            name,
            tuple(found[channel] for channel in range(channels)),
            labels.get(name),
            _subject(name),
            part,
        )
        for name, found in files.items()
    ]


def _bids(root: Path) -> RawDataset:
    """Every suffix in ``anat`` is a channel, if all cases have it."""
    files: dict[str, dict[str, Path]] = {}
    for pattern in ("sub-*/anat/*", "sub-*/ses-*/anat/*"):
        for path in nifti_files(root.glob(pattern), root):
            name, _, suffix = stem(path).rpartition("_")
            if not name.startswith("sub-"):
                raise InputError(path, "not a BIDS name", "sub-<subject>_…_<suffix>", "rename it")
            if suffix in files.get(name, {}):
                raise InputError(path, "the image is there twice", "one file", "remove one")
            files.setdefault(name, {})[suffix] = path
    channels = tuple(sorted({suffix for found in files.values() for suffix in found}))
    for name, found in sorted(files.items()):
        if missing := [suffix for suffix in channels if suffix not in found]:
            raise InputError(
                root / name,
                f"no {' nor '.join(missing)} image",
                f"{', '.join(channels)} for each case, as channels",
                "keep only the suffixes that all cases have",
            )
    labels: dict[str, Path] = {}
    for path in nifti_files(root.glob("derivatives/labels/sub-*/**/*"), root):
        name = _bids_label_case(stem(path), files, channels)
        if name is None:
            raise InputError(
                path,
                "no image of this name",
                "<image name>_seg, _dseg, _label or _mask",
                "rename it, or remove it",
            )
        if name in labels:
            raise InputError(path, f"a second label beside {labels[name]}", "one", "keep one")
        labels[name] = path
    cases = tuple(
        RawCase(
            name,
            tuple(found[suffix] for suffix in channels),
            labels.get(name),
            _subject(name),
            "train",
        )
        for name, found in sorted(files.items())
    )
    return RawDataset(root, "bids", channels, {}, None, cases, _read_splits(root, cases))


def _bids_label_case(label: str, names: Iterable[str], channels: tuple[str, ...]) -> str | None:
    """The case whose name, or name and suffix, begins the label's: the longest if several."""
    suffix = "|".join(map(re.escape, channels))
    rest = rf"_(?:(?:{suffix})_(?:.+_)?|(?:(?:desc|label|space)-[^_]+_)*){_LABEL_ENDING}"
    matching = [n for n in names if label.startswith(n) and re.fullmatch(rest, label[len(n) :])]
    return max(matching, key=len, default=None)


def _plain(root: Path) -> RawDataset:
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for folder, found in (("images", images), ("labels", labels)):
        for path in _scans(root / folder, root):
            if stem(path) in found:
                raise InputError(path, f"{stem(path)} is there twice", "one file", "remove one")
            found[stem(path)] = path
    _no_orphans(labels, images, root / "images")
    cases = tuple(
        RawCase(name, (path,), labels.get(name), _subject(name), "train")
        for name, path in sorted(images.items())
    )
    return RawDataset(root, "plain", ("image",), {}, None, cases, _read_splits(root, cases))


def _read_splits(root: Path, cases: Iterable[RawCase]) -> tuple[Split, ...] | None:
    source = root / "splits_final.json"
    if not _is_there(source):
        return None
    usable = {case.name for case in cases if case.part == "train" and case.label}
    splits: list[_SplitJson] = _read_json(source, list[_SplitJson])
    for split in splits:
        named = [*split.train, *split.val]
        wrong = None
        if unknown := [name for name in named if name not in usable]:
            wrong = f"{unknown[0]} is not a labelled training case ({len(unknown)} such)"
        elif len(set(named)) < len(named):
            twice = next(name for name, count in Counter(named).items() if count > 1)
            wrong = f"{twice} is in a split twice"
        elif not split.train:
            wrong = "a split trains on nothing"
        if wrong:
            expected = "each case once, in train or val"
            raise InputError(source, wrong, expected, "correct it, or remove it for a seeded split")
    if not splits:
        raise InputError(source, "no split", "at least one", "remove it for a seeded split")
    return tuple(Split(tuple(split.train), tuple(split.val)) for split in splits)


def _read_json(source: Path, kind: Any) -> Any:
    check_inside(source, source.parent)
    if not source.is_file():
        raise InputError(source, "is not a file", "a JSON file", "replace or remove it")
    try:
        return TypeAdapter(kind).validate_json(source.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        wrong = f"{where}: {first['msg']}" if where else first["msg"]
        raise InputError(source, wrong, "nnU-Net's format, version 2", "correct it") from error


def _is_there(path: Path) -> bool:
    """Whether a folder has this entry, be it a link to nothing: what is there must be read."""
    return os.path.lexists(path)


def _scans(folder: Path, root: Path) -> list[Path]:
    """The NIfTI files of a folder, none where it is missing."""
    if _is_there(folder) and not folder.is_dir():
        raise InputError(folder, "is not a folder", "a folder of scans", "replace or remove it")
    return nifti_files(folder.glob("*"), root)


def _subject(name: str) -> str:
    match = re.match(r"sub-[A-Za-z0-9]+", name)
    return match[0] if match else name


def _no_orphans(labels: dict[str, Path], images: Iterable[str], folder: Path) -> None:
    if orphans := sorted(set(labels) - set(images)):
        raise InputError(
            labels[orphans[0]],
            "a label without its image",
            f"{orphans[0]} in {folder}",
            "add the image or remove the label",
        )
