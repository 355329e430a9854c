"""The model card of an export: what it is, what it was trained and tested on, where it ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penn_jax.report.tables import six_metric_markdown
from penn_jax.types import InputError

_USE = {
    "torch": """\
```bash
pip install torch safetensors numpy nibabel
python penn_torch.py image.nii.gz mask.nii.gz
```

`penn_torch.py` stands alone. `load(".")` gives the network as a `torch.nn.Module`: train it
further, save its `state_dict()` as safetensors, and
`penn import torch . --weights FILE --out RUN` makes a run of it again.""",
    "onnx": """\
`model.onnx` takes `image`, float32 (batch, channels, *sizes), every size a multiple of STRIDE,
and gives `logits` and `probabilities`, (batch, classes, *sizes). What must happen to a scan before
and after is in `config.json`; penn_jax does it: `penn predict . scans/ --out masks`.""",
    "stablehlo": """\
```python
import jax.export

program = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
logits = program.call(image)
```

It runs on CPU, CUDA and TPU, from float32 images (batch, *sizes, channels), every size a multiple
of STRIDE, to logits (batch, *sizes, classes). What must happen to a scan before and after is in
`config.json`; penn_jax does it: `penn predict . scans/ --out masks`.""",
    "monai": """\
```bash
pip install "monai[fire,ignite,nibabel]"
python -m monai.bundle run --config_file configs/inference.json \\
  --dataset_dir scans --output_dir masks
```""",
}


def model_card(
    content: Mapping[str, Any],
    kind: str,
    evaluation: Mapping[str, Any] | None,
    validation: Mapping[str, float] | None,
    imported: bool,
) -> str:
    """The card as Markdown.

    Args:
        content: ``config.json`` of the export.
        kind: its format.
        evaluation: what ``penn evaluate --out`` wrote, if it is given.
        validation: scores of the run's own validation, where its log has them.
        imported: whether the run was made by ``penn import``.
    """
    run, scan, network = content["run"]["card"], content["scan"], content["network"]
    labels, neighbours = content["mask"]["labels"], content["evaluation"]["neighbours"]
    structures = ", ".join(name for name, number in labels.items() if number)
    values = ", ".join(
        f"{value} {name}" for value, name in zip(content["mask"]["values"], labels, strict=True)
    )
    frames = "slices along the coarsest axis" if scan["dimensions"] == 2 else "the whole volume"
    if neighbours:
        frames += f", with {neighbours} more on each side as channels"
    sampling = " × ".join(f"{mm:g}" for mm in scan["spacing"] or ())
    sampling = f"{sampling} mm" if sampling else "the scan's own spacing"
    stages = ", ".join(map(str, network["channels"]))
    origin = f"Started from the run `{run['init']}`." if run.get("init") else ""
    if imported:
        origin += " Imported from PyTorch: what was done to the weights there is not known here."
    return f"""\
---
library_name: penn_jax
tags: [mri, segmentation, medical-imaging]
---

# {content["run"]["config"]["name"]}: {structures} in MRI

A convolution-deconvolution network for MRI segmentation, trained by penn_jax. Research software,
not a medical device.

## Use
{_USE[kind].replace("STRIDE", str(content["evaluation"]["stride"]))}

## What it does to a scan
| | |
|---|---|
| input | {", ".join(scan["channels"])}: NIfTI of any orientation, spacing and size, a file each |
| frames | {frames}; RAS orientation; sampled at {sampling} |
| intensities | clipped to the scan's 0.5 and 99.5 percentiles, standardised over the body |
| network | stages of {stages} channels, stem {network["stem"]}, skips {network["skip"]}, \
normalisation {network["norm"]} |
| mask | on the scan's own grid: {values} |

## Data
Trained on the training part of split {run["fold"]} of a prepared store. SHA-256 of the data:
`{run["data_hash"]}`; of the split: `{run["split_hash"]}`. {origin}
The terms of the data bind these weights too; they are not known to this file.

## Metrics
{_metrics(evaluation, validation)}

## Intended use and limits
For research, on scans like those it was trained on: the same sequence, anatomy and kind of
patients. Nothing is known of other contrasts, field strengths, scanners, implants or findings that
the training data lacks; the network gives a mask for any image, of another organ too, without a
word. Every mask needs the eye of a person who can judge it. No diagnosis or treatment may rest on
it.

## Citation
The method follows Chen et al., "A patch-based deep learning MRI segmentation model for improving
efficiency and clinical examination of the spinal tumor", Journal of Bone Oncology 49 (2024) 100649.
The weights are not those of the paper. Cite the data they were trained on as its authors ask.
"""


def read_evaluation(path: Path) -> dict[str, Any]:
    """What ``penn evaluate --out`` wrote, as far as a card tells of it.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        six_metric_markdown(values)
        len(values["cases"])
        json.dumps(evaluation_scores(values), allow_nan=False)
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            path, "is no evaluation", "the JSON file of penn evaluate --out", "evaluate first"
        ) from error
    return values


def evaluation_scores(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The mean over cases of each metric, by name."""
    means = {f"mean_{name}": mean["value"] for name, mean in evaluation["mean"].items()}
    return {name: value for name, value in means.items() if value is not None}


def _metrics(evaluation: Mapping[str, Any] | None, validation: Mapping[str, float] | None) -> str:
    if evaluation is not None:
        table = six_metric_markdown(evaluation)
        return f"By `penn evaluate` on {len(evaluation['cases'])} cases:\n\n{table}"
    if validation:
        scores = ", ".join(f"{name.replace('_', ' ')} {x:.4f}" for name, x in validation.items())
        return f"Of the run's own validation, on the prepared grid, without intervals: {scores}."
    return "None is known: the run's log has none, and no evaluation was given."
