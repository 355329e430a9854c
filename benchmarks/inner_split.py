"""A raw folder with a split inside its training cases, to make choices on.

    python benchmarks/inner_split.py $PENN_DATA/spine_t1 inner/spine_t1
    python benchmarks/inner_split.py $PENN_DATA/tumour_t1gd inner/tumour_t1gd --group 3

The validation cases of the first split are left out whole; every fourth of the training cases, in
the order of their names, is validated on in their place. Where names that begin alike may be of one
person, ``--group`` says in how many characters, and they stay together. For nnU-Net raw folders.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

HELD_OUT = 4
"""Of the training cases, or groups of them, one in so many."""


def inner_split(raw: Path, out: Path, group: int | None = None) -> dict[str, list[str]]:
    """Write the folder.

    Args:
        raw: with ``dataset.json``, ``splits_final.json``, ``imagesTr`` and ``labelsTr``.
        out: a new folder.
        group: cases whose names share so many first characters stay together; None: none do.

    Returns:
        The split.

    Raises:
        SystemExit: there are too few cases, or groups of them, to hold one out.
    """
    cases = sorted(json.loads((raw / "splits_final.json").read_text())[0]["train"])
    groups = sorted({case[:group] for case in cases})[HELD_OUT - 1 :: HELD_OUT]
    held_out = [case for case in cases if case[:group] in groups]
    if not held_out:
        raise SystemExit(f"{raw}: fewer than {HELD_OUT} groups of training cases, none to hold out")
    split = {"train": [case for case in cases if case not in held_out], "val": held_out}
    for part, rest in (("imagesTr", "_????.nii.gz"), ("labelsTr", ".nii.gz")):
        (out / part).mkdir(parents=True)
        for case in cases:
            for path in (raw / part).glob(case + rest):
                shutil.copy(path, out / part)
    record = json.loads((raw / "dataset.json").read_text()) | {"numTraining": len(cases)}
    (out / "dataset.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "splits_final.json").write_text(json.dumps([split], indent=1) + "\n")
    return split


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--group", type=int, help="characters that names of one person share")
    options = parser.parse_args()
    for part, cases in inner_split(options.raw, options.out, options.group).items():
        print(f"{part}: {len(cases)} cases")


if __name__ == "__main__":
    main()
