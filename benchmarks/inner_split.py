"""A raw folder with a split inside its training cases, to make choices on.

    python benchmarks/inner_split.py $PENN_DATA/spine_t1 inner/spine_t1

The validation cases of the first split are left out whole; every fourth of the training cases, in
the order of their names, is validated on in their place. For nnU-Net raw folders.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

HELD_OUT = 4
"""Of the training cases one in so many."""


def inner_split(raw: Path, out: Path) -> dict[str, list[str]]:
    """Write the folder.

    Args:
        raw: with ``dataset.json``, ``splits_final.json``, ``imagesTr`` and ``labelsTr``.
        out: a new folder.

    Returns:
        The split.
    """
    cases = sorted(json.loads((raw / "splits_final.json").read_text())[0]["train"])
    held_out = cases[HELD_OUT - 1 :: HELD_OUT]
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    for part, cases in inner_split(options.raw, options.out).items():
        print(f"{part}: {len(cases)} cases")


if __name__ == "__main__":
    main()
