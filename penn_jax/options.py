"""The options of every command; each ``--help`` has an example."""

from __future__ import annotations

import argparse
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from penn_jax import commands
from penn_jax.completion import SHELLS
from penn_jax.data.remote import SCHEME, Place, place
from penn_jax.types import InputError

EXIT_INPUT = 2
"""What the user gave cannot be used; also what argparse exits with."""


class Parser(argparse.ArgumentParser):
    """Tells a wrong command line in one line, as every other mistake."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        # Of "gs://bucket" a Path would make the name of a local folder.
        self.register("type", Path, _local)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_INPUT, f"penn: error: {self.prog}: {message}; see {self.prog} --help\n")


def _local(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is not on a disk, expected a local path")
    return Path(text)


def _place(text: str) -> Place:
    """A local path or a name in object storage."""
    try:
        return place(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _store(text: str) -> Place | str:
    """The same, or the address of a store that is only read."""
    return text if "://" in text and not text.startswith(SCHEME) else _place(text)


class _Version(argparse.Action):
    """Looks the version up when it is asked for: a source tree that is not installed has none."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"penn_jax {metadata.version('penn-jax')}")
        parser.exit()


def build_parser() -> Parser:
    """The whole command line; ``options.command`` is what to call."""
    parser = Parser(prog="penn", description="Patch-based MRI segmentation in JAX.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.epilog = "example: penn demo --out demo"
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str,
        run: Any,
        text: str,
        example: str,
        takes_config: bool = False,
        progress: bool = True,
    ) -> Any:
        sub = subparsers.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=run, takes_config=takes_config)
        if progress:
            sub.add_argument("--quiet", action="store_true", help="no progress line")
        return sub

    sub = command(
        "demo", commands.demo_command, "the whole path on synthetic spines", "penn demo --out demo"
    )
    sub.add_argument("--out", type=Path, default=Path("demo"), help="new folder (default: demo)")

    sub = command(
        "prepare",
        commands.prepare_command,
        "a folder of scans to a prepared store",
        "penn prepare raw prepared",
    )
    sub.add_argument("raw", type=Path, help="nnU-Net raw, BIDS, or images/ + labels/")
    sub.add_argument("out", type=_place, help="folder of the store, also gs://")
    sub.add_argument("--merge-labels", action="store_true", help="one foreground class")
    sub.add_argument("--dimensions", type=int, choices=(2, 3), default=2)
    sub.add_argument("--spacing", nargs="+", default=["median"], help="median, native, or mm")
    sub.add_argument("--seed", type=int, default=0, help="of the split, where none is given")
    sub.add_argument("--validation-fraction", type=float, default=0.2, help="likewise")
    sub.add_argument(
        "--allow-leak", action="store_true", help="go on where a split shares scans or subjects"
    )
    sub.add_argument("--workers", type=int, default=None, help="processes (default: all CPUs)")

    for name, run, text in (
        ("pretrain", commands.pretrain_command, "self-supervised run on a prepared store"),
        ("train", commands.train_command, "supervised run on a prepared store"),
    ):
        example = f"penn {name} configs/spine_t1.py --data prepared --out runs/{name}"
        sub = command(name, run, text, example, takes_config=True)
        sub.epilog += "\nany value of the config: --optim.learning-rate 0.02 (penn_jax/config.py)"
        sub.add_argument("config", type=Path, help="a file of configs/, or a config.json")
        sub.add_argument("--data", type=_store, required=True, help="prepared store, also gs://")
        sub.add_argument("--out", type=_place, required=True, help="run directory, also gs://")
        sub.add_argument("--resume", action="store_true", help="go on from the latest checkpoint")
        sub.add_argument("--fold", type=int, default=0, help="number of the split (default: 0)")
        sub.add_argument("--max-steps", type=int, help="budget in steps")
        sub.add_argument("--max-seconds", type=float, help="budget in seconds of training")
        sub.add_argument("--checkpoint-every", type=int, help="steps between checkpoints")
        several = sub.add_argument_group(
            "several processes", "SLURM and TPU pods say this by themselves (docs/hosts.md)"
        )
        several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
        several.add_argument("--processes", type=int, metavar="N", help="how many there are")
        several.add_argument("--process", type=int, metavar="I", help="number of this one, from 0")
        if name == "train":
            sub.add_argument("--init", type=_place, help="run whose weights start this one")
            sub.add_argument(
                "--teacher", type=_place, help="run whose predictions stand for all labels"
            )

    sub = command(
        "study",
        commands.study_command,
        "ways to train compared over seeds: one table with intervals",
        "penn study configs/studies/efficiency.py --data prepared --out studies/efficiency",
    )
    sub.add_argument("config", type=Path, help="a file of configs/studies/")
    sub.add_argument("--data", type=_store, required=True, help="prepared store, also gs://")
    sub.add_argument("--out", type=Path, required=True, help="folder of the study")
    sub.add_argument(
        "--resume", action="store_true", help="go on, or share the work with other processes"
    )

    sub = command(
        "predict",
        commands.predict_command,
        "scans to masks",
        "penn predict runs/train scans/ --out masks",
    )
    sub.add_argument(
        "model",
        type=_place,
        nargs=1,
        help="a run (also gs://) or an export; further ones (folders with a config.json) are "
        "averaged with it",
    )
    sub.add_argument(
        "inputs",
        type=_place,
        nargs="+",
        help="scans, folders of scans, or of one DICOM series each",
    )
    sub.add_argument("--out", type=Path, required=True, help="folder of the masks")
    sub.add_argument(
        "--dicom-seg", action="store_true", help="write a DICOM SEG beside each mask, too"
    )
    sub.add_argument("--probabilities", action="store_true", help="write them too")
    sub.add_argument(
        "--uncertainty", action="store_true", help="write the entropy of each voxel beside the mask"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace masks that are there")
    sub.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="average over mirrorings (default: as the run's config says, like all that follows)",
    )
    sub.add_argument("--batch-size", type=int, help="most slices evaluated at once")
    sub.add_argument("--memory-budget", type=float, help="GiB for evaluating the network")
    sub.add_argument(
        "--smallest-component", type=float, metavar="MM3", help="smaller ones become background"
    )
    sub.add_argument(
        "--engine",
        choices=("auto", "jax", "onnxruntime"),
        default="auto",
        help="what evaluates the network (default: onnxruntime on a CPU where it is installed)",
    )

    sub = command(
        "export",
        commands.export_command,
        "a trained network for PyTorch, ONNX, XLA or MONAI",
        "penn export runs/train --to torch --out exported",
    )
    sub.add_argument(
        "model", type=_place, help="a run directory (also gs://), or an export with weights"
    )
    sub.add_argument("--to", choices=("torch", "onnx", "stablehlo", "monai"), required=True)
    sub.add_argument("--out", type=Path, required=True, help="new folder")
    sub.add_argument(
        "--fold",
        action="store_true",
        help="fold batch normalisation into the convolutions (always so for onnx and stablehlo)",
    )
    sub.add_argument("--metrics", type=Path, help="JSON file of penn evaluate, for the card")

    sub = command(
        "import",
        commands.import_command,
        "an export to PyTorch as a run again",
        "penn import torch exported --weights tuned.safetensors --out runs/tuned",
    )
    sub.add_argument("origin", choices=("torch",), help="where the weights come from")
    sub.add_argument("folder", type=Path, help="folder of penn export --to torch (or monai)")
    sub.add_argument("--out", type=Path, required=True, help="new run directory")
    sub.add_argument(
        "--weights", type=Path, help="state dict that was trained further: .safetensors or .pt"
    )

    sub = command(
        "evaluate",
        commands.evaluate_command,
        "six metrics and surface distances",
        "penn evaluate masks labelsTr",
    )
    sub.add_argument("predictions", type=Path, help="folder of predicted masks")
    sub.add_argument("references", type=Path, help="folder of reference masks")
    sub.add_argument("--out", dest="json", type=Path, help="JSON file of the result")
    sub.add_argument("--merge-labels", action="store_true", help="one foreground class")
    sub.add_argument("--cases", nargs="+", help="only these cases")
    sub.add_argument(
        "--choose-component",
        action="store_true",
        help="find the best --smallest-component of penn predict; for validation cases only",
    )

    sub = command(
        "report",
        commands.report_command,
        "a run, or a folder of masks, as one HTML page",
        "penn report runs/train --data prepared; penn report masks",
    )
    sub.add_argument("run", type=_place, help="run directory of penn train, or a folder of masks")
    sub.add_argument("--data", type=_store, help="the run's prepared store")
    sub.add_argument("--baseline", type=_place, help="another run on it, to compare with")
    sub.add_argument("--out", type=_place, help="HTML file (default: report.html in the folder)")

    sub = command(
        "view",
        commands.view_command,
        "a scan and its masks in the browser",
        "penn view scans/a_0000.nii.gz masks/a.nii.gz",
        progress=False,
    )
    sub.add_argument("image", type=Path, help="scan, or a folder of one DICOM series")
    sub.add_argument("masks", type=Path, nargs="+", help="masks, shown over it")
    sub.add_argument("--port", type=int, default=0, help="to listen on (default: a free one)")
    sub.add_argument("--open", action="store_true", help="open the page in the browser")

    sub = command(
        "doctor",
        commands.doctor_command,
        "what is installed, what is missing and what would install it",
        "penn doctor --json",
        progress=False,
    )
    sub.add_argument("--json", action="store_true", help="the same for programs")

    sub = command(
        "completion",
        commands.completion_command,
        "a script by which the shell completes this command line",
        "penn completion bash > ~/.local/share/bash-completion/completions/penn",
        progress=False,
    )
    sub.add_argument("shell", choices=SHELLS)
    return parser
