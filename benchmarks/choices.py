"""Which choices matter: variants of a config, trained for the same time on an inner split.

The validation cases of the store's own split are left untouched: every third subject group of its
training part is held out in their place, so that a choice made here is not made on the cases that
a figure is reported on. One variant after another, each in a process of its own:

    python benchmarks/choices.py configs/tumour_t1gd.py --data prepared/tumour_t1gd \\
        --out choices --seconds 300 --group 3 -- "" "--train.batch-size 8" "--optim.name adamw"

Each variant is one string of overrides. The table is printed and kept in ``OUT/choices.jsonl``.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from penn_jax.config import write_json

HELD_OUT = 3
"""One group of so many is held out."""


def inner_store(store: Path, out: Path, group: int) -> Path:
    """The same arrays under a manifest whose only split lies inside the training part.

    Args:
        store: prepared store.
        out: where the linked store is made.
        group: leading characters of a case's name that tell which cases belong together.
    """
    manifest = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    training = manifest["splits"][0]["train"]
    groups = sorted({name[:group] for name in training})
    held_out = set(groups[HELD_OUT - 1 :: HELD_OUT])
    manifest["splits"] = [
        {
            "train": [name for name in training if name[:group] not in held_out],
            "validation": [name for name in training if name[:group] in held_out],
        }
    ]
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "manifest.json", manifest)
    if not (out / "cases").exists():
        (out / "cases").symlink_to((store / "cases").resolve())
    return out


def run(config: Path, store: Path, out: Path, seconds: float, overrides: str) -> dict:
    """Train one variant and return what its log ends with."""
    command = ["train", str(config), "--data", str(store), "--out", str(out), "--quiet"]
    budget = ["--max-seconds", str(seconds), "--checkpoint-every", "0"]
    program = [sys.executable, "-m", "penn_jax.cli", *command, *budget, *shlex.split(overrides)]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    log = (out / "metrics.jsonl").read_text(encoding="utf-8")
    points = [json.loads(line) for line in log.splitlines()]
    training = [point for point in points if "loss" in point][-1]
    return {
        "overrides": overrides,
        "dice": round(points[-1]["dice"], 4),
        "pooled_dice": round(points[-1]["pooled_dice"], 4),
        "steps": training["step"],
        "seconds": training["seconds"],
        "training_soft_dice": round(training["soft_dice"], 4),
        "share_waiting": round(training["waiting"] / training["seconds"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--group", type=int, required=True, help="leading characters of a group")
    parser.add_argument("variants", nargs="+")
    options = parser.parse_args()

    store = inner_store(options.data, options.out / "store", options.group)
    record = options.out / "choices.jsonl"
    done = len(list(options.out.glob("variant*")))
    for number, overrides in enumerate(options.variants, start=done):
        out = options.out / f"variant{number:03d}"
        result = run(options.config, store, out, options.seconds, overrides)
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
