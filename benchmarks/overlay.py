"""Draws the picture of an evaluation: best to worst case, reference dashed, prediction in colour.

python benchmarks/overlay.py IMAGES REFERENCES MASKS METRICS.json PICTURE.png
"""

import json
import sys
from pathlib import Path

from penn_jax.demo import draw


def main() -> None:
    images, references, masks, metrics, picture = map(Path, sys.argv[1:])
    cases = json.loads(metrics.read_text(encoding="utf-8"))["cases"]
    draw(images, references, masks, cases, picture)


if __name__ == "__main__":
    main()
