"""Whether ``penn prepare`` finds copies of scans, and copies only.

    python benchmarks/planted_copies.py [SPINES [SLICES]] [--workers 1]

SPINES is a raw nnU-Net folder. It is copied and split in halves, and gets copies of its scans,
stored in every way below, across training, validation and test cases. Each planted pair must be
among the identical scans that ``prepare`` reports and in a leak that it refuses, and no pair of
distinct scans may be. In SLICES, taken as it lies, every reported pair is compared voxel by voxel.

Folders default to ``spine_t1`` and ``tumour_t1gd`` in ``$PENN_DATA``.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from rich.console import Console
from rich.table import Table

from penn_jax.config import PrepareConfig
from penn_jax.data.leaks import identical, split_leaks
from penn_jax.data.prepare import prepare
from penn_jax.data.store import Store
from penn_jax.data.volume import read_image
from penn_jax.types import InputError

Stored = tuple[np.ndarray, nib.Nifti1Header]
"""The numbers as they lie in the file, and the header."""

PLACES = (
    ("train", "validation"),
    ("validation", "train"),
    ("train", "test"),
    ("validation", "test"),
)
"""Where the scan is taken from and where its copy goes."""


# ---- ways to store a copy ----------------------------------------------------------------------


def unchanged(stored: Stored) -> Stored:
    return stored


def other_spacing(stored: Stored) -> Stored:
    array, header = stored
    affine = header.get_best_affine() @ np.diag([2.0, 0.5, 1.1, 1.0])
    return array, placed(header, affine)


def other_origin(stored: Stored) -> Stored:
    array, header = stored
    affine = header.get_best_affine()
    affine[:3, 3] += (30.0, -12.5, 7.0)
    return array, placed(header, affine)


def turned_affine(stored: Stored) -> Stored:
    """The header says that the patient lay the other way round; the voxels stay."""
    array, header = stored
    return array, placed(header, header.get_best_affine() @ np.diag([-1.0, 1, -1, 1]))


def other_text(stored: Stored) -> Stored:
    array, header = stored
    header["descrip"], header["aux_file"], header["db_name"] = b"export 7", b"none", b"anonymous"
    return array, header


def other_scale(stored: Stored) -> Stored:
    array, header = stored
    header["scl_slope"], header["scl_inter"] = 2.5, -100.0
    return array, header


def as_type(kind: str) -> Callable[[Stored], Stored]:
    return lambda stored: (stored[0].astype(kind), stored[1])


def normalised(stored: Stored) -> Stored:
    array, header = stored
    return ((array - array.mean()) / array.std()).astype(np.float32), header


def reordered(
    order: tuple[int, int, int], flipped: tuple[int, ...], adapt: bool
) -> Callable[[Stored], Stored]:
    """Transposed, then flipped; the affine adapted to that, or left as it was."""

    def change(stored: Stored) -> Stored:
        array, header = stored
        to_old = np.zeros((4, 4))
        to_old[3, 3] = 1.0
        for new, old in enumerate(order):
            to_old[old, new] = -1.0 if new in flipped else 1.0
            to_old[old, 3] = array.shape[old] - 1.0 if new in flipped else 0.0
        if adapt:
            header = placed(header, header.get_best_affine() @ to_old)
        return np.flip(array.transpose(order), flipped), header

    return change


def everything(stored: Stored) -> Stored:
    for change in (reordered((2, 0, 1), (0, 2), False), other_scale, as_type(">f4"), other_text):
        stored = change(stored)
    return other_spacing(stored)


def placed(header: nib.Nifti1Header, affine: np.ndarray) -> nib.Nifti1Header:
    header.set_sform(affine, code=2)
    header.set_qform(affine, code=2, strip_shears=True)
    return header


def ways() -> dict[str, tuple[Callable[[Stored], Stored], int, bool]]:
    """Of each: the change, the level of compression, and whether labels lie on another grid."""
    found = {
        "renamed": (unchanged, 9, False),
        "compressed at level 1": (unchanged, 1, False),
        "compressed at level 0": (unchanged, 0, False),
        "spacing edited": (other_spacing, 6, True),
        "origin edited": (other_origin, 6, True),
        "affine turned": (turned_affine, 6, True),
        "description edited": (other_text, 6, False),
        "slope and intercept": (other_scale, 6, False),
        "as int32": (as_type("<i4"), 6, False),
        "as big-endian int16": (as_type(">i2"), 6, False),
        "as float32": (as_type("<f4"), 6, False),
        "as float64": (as_type("<f8"), 6, False),
        "normalised to float32": (normalised, 6, False),
    }
    for adapt in (True, False):
        affine = "affine adapted" if adapt else "affine as it was"
        for axis in range(3):
            change = reordered((0, 1, 2), (axis,), adapt)
            found[f"flipped along axis {axis}, {affine}"] = (change, 6, True)
        for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1)):
            change = reordered(order, (), adapt)
            found[f"axes {order}, {affine}"] = (change, 6, True)
        for order, flipped in (((1, 0, 2), (0,)), ((2, 0, 1), (0, 1, 2))):
            change = reordered(order, flipped, adapt)
            found[f"axes {order}, {flipped} flipped, {affine}"] = (change, 6, True)
    found["all at once"] = (everything, 3, True)
    return found


def read(path: Path) -> Stored:
    image = nib.load(path)
    return np.asarray(image.dataobj.get_unscaled()), image.header.copy()


def write(path: Path, stored: Stored, level: int) -> None:
    """Byte by byte: a library would adapt what is to be wrong."""
    array, header = stored
    spacing = header["pixdim"].copy()
    if array.dtype.byteorder == ">":
        header = header.as_byteswapped(">")
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header["pixdim"], header["vox_offset"] = spacing, 352
    content = header.binaryblock + bytes(4) + array.tobytes("F")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(content, level))


# ---- planting and counting ---------------------------------------------------------------------


def plant(raw: Path) -> dict[str, tuple[str, str, tuple[str, str]]]:
    """Add copies to a raw folder.

    Returns:
        Of each copy: what it was made from, how it was stored, and where both lie.
    """
    names = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").iterdir())
    split = {"train": names[: len(names) // 2], "val": names[len(names) // 2 :]}
    sources = {
        "train": itertools.cycle(split["train"][:]),
        "validation": itertools.cycle(split["val"][:]),
    }
    planted: dict[str, tuple[str, str, tuple[str, str]]] = {}
    for number, ((way, (change, level, moves)), place) in enumerate(
        itertools.product(ways().items(), PLACES)
    ):
        taken_from, put_into = place
        source = next(sources[taken_from])
        name = f"case{number:04d}"
        end = "Ts" if put_into == "test" else "Tr"
        image = change(read(raw / f"imagesTr/{source}_0000.nii.gz"))
        write(raw / f"images{end}/{name}_0000.nii.gz", image, level)
        if put_into != "test":
            label = read(raw / f"labelsTr/{source}.nii.gz")
            kept = label[0].dtype
            array, header = change(label) if moves else label
            header["scl_slope"], header["scl_inter"] = 1, 0
            write(raw / f"labelsTr/{name}.nii.gz", (array.astype(kept), header), level)
            split["val" if put_into == "validation" else "train"].append(name)
        planted[name] = (source, way, place)
    (raw / "splits_final.json").write_text(json.dumps([split]))
    return planted


def pairs(groups: list[list[str]]) -> set[frozenset[str]]:
    return {frozenset(pair) for names in groups for pair in itertools.combinations(names, 2)}


def same_voxels(one: Path, other: Path) -> bool:
    """Compared in all 48 orders, on the scale of dense ranks; no hash, no sum."""
    ranks = []
    for path in (one, other):
        array = read_image([path]).array[..., 0]
        ranks.append(np.unique(array, return_inverse=True)[1].reshape(array.shape))
    return any(
        np.array_equal(ranks[0], np.flip(ranks[1].transpose(order), flipped))
        for order in itertools.permutations(range(3))
        for count in range(4)
        for flipped in itertools.combinations(range(3), count)
    )


def prepared(raw: Path, out: Path, workers: int) -> dict:
    config = PrepareConfig(spacing="native", merge_labels=True, allow_leak=True)
    return Store(prepare(raw, out, config, workers, progress=True)).manifest


def find_planted(source: Path, folder: Path, workers: int, console: Console) -> bool:
    raw = folder / "raw"
    shutil.copytree(source, raw)
    planted = plant(raw)
    refusal = ""
    try:
        prepare(raw, folder / "refused", PrepareConfig(spacing="native"), workers, progress=True)
    except InputError as error:
        refusal = str(error)
    nothing_left = sorted(path.name for path in folder.iterdir()) == ["raw"]
    manifest = prepared(raw, folder / "out", workers)

    reported = pairs(identical(manifest["cases"]))
    leaks = split_leaks(manifest["cases"], manifest["splits"])
    found: dict[str, dict] = defaultdict(lambda: defaultdict(list))
    for name, (original, way, place) in planted.items():
        is_leak = any(name in line and original in line and "same scan" in line for line in leaks)
        found[way][place].append(frozenset((name, original)) in reported and is_leak)
    table = Table("stored", *(f"{a} → {b}" for a, b in PLACES), title="planted copies found")
    for way, places in found.items():
        table.add_row(way, *(f"{sum(places[p])} of {len(places[p])}" for p in PLACES))
    console.print(table)

    def original(name: str) -> str:
        return planted[name][0] if name in planted else name

    kinds = {frozenset(map(original, pair)) for pair in reported}
    distinct = {kind for kind in kinds if len(kind) == 2}
    false = [
        kind
        for kind in distinct
        if not same_voxels(*(raw / f"imagesTr/{name}_0000.nii.gz" for name in sorted(kind)))
    ]
    total = sum(len(hits) for places in found.values() for hits in places.values())
    hits = sum(sum(hits) for places in found.values() for hits in places.values())
    names = len(manifest["cases"])
    console.print(
        f"{source.name}: {hits} of {total} planted copies found among {names} cases; "
        f"pairs of originals reported: {len(distinct)} "
        f"({', '.join(' = '.join(sorted(kind)) for kind in distinct) or 'none'}), "
        f"not the same voxels: {len(false)}"
    )
    console.print(f"without --allow-leak: {refusal or 'NOT REFUSED'}", style="dim")
    console.print(f"left behind by the refusal: {'nothing' if nothing_left else 'SOMETHING'}")
    return hits == total and not false and bool(refusal) and nothing_left


def false_alarms(raw: Path, folder: Path, workers: int, console: Console) -> bool:
    manifest = prepared(raw, folder / "slices", workers)
    names = list(manifest["cases"])
    reported = pairs(identical(manifest["cases"]))
    sources = {name: manifest["cases"][name]["sources"][0]["path"] for name in names}
    false = [pair for pair in reported if not same_voxels(*(raw / sources[name] for name in pair))]
    console.print(
        f"{raw.name}: {len(names)} cases, {len(names) * (len(names) - 1) // 2} pairs, "
        f"{len(reported)} reported as identical, {len(false)} of them wrongly"
    )
    return not false


def main() -> int:
    data = Path(os.environ.get("PENN_DATA", Path(__file__).parents[1] / "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("spines", type=Path, nargs="?", default=data / "spine_t1")
    parser.add_argument("slices", type=Path, nargs="?", default=data / "tumour_t1gd")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    console = Console(width=110, highlight=False)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        right = find_planted(options.spines, Path(name), options.workers, console)
        right &= false_alarms(options.slices, Path(name), options.workers, console)
    console.print(f"{'all right' if right else 'WRONG'}, {time.monotonic() - start:.0f} s")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
