"""The options of every command: a function each, one table of them all."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from penn_jax import commands
from penn_jax.completion import SHELLS
from penn_jax.data.remote import SCHEME, Place, place
from penn_jax.progress import Outcome
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


class Command(NamedTuple):
    """One command as its users see it."""

    name: str
    run: Callable[[argparse.Namespace], Outcome | None]
    """Its end; None from all processes but the first of several."""
    text: str
    """What it does, in a few words."""
    add_options: Callable[[argparse.ArgumentParser], None]
    examples: tuple[str, ...]
    """Lines to copy, the end of its help."""
    takes_config: bool = False
    """Whether options that it does not know are values of the config."""
    has_result: bool = True
    """Whether it ends with something that ``--quiet`` and ``--json`` have a meaning for."""
    trains: bool = False
    """Whether it trains, and so wants huge pages."""


def build_parser() -> Parser:
    """The whole command line; ``options.command`` is what to call."""
    parser = Parser(prog="penn", description="Patch-based MRI segmentation in JAX.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.epilog = "example: penn demo --out demo"
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        description = command.text
        if command.takes_config:
            description += (
                "\n\nany value of the config can be changed, as penn_jax/config.py names it:"
                "\n  --optim.learning-rate 0.02 --patches.size 96 96"
            )
        sub = subparsers.add_parser(
            command.name,
            help=command.text,
            description=description,
            epilog="example: " + "\n         ".join(command.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(
            command=command.run,
            takes_config=command.takes_config,
            trains=command.trains,
            quiet=False,
            json=False,
        )
        command.add_options(sub)
        if command.has_result:
            _add_output(sub)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--quiet", action="store_true", help="no progress, the result alone")
    output.add_argument(
        "--json", action="store_true", help="the result as one JSON object, alone on stdout"
    )


# ---- the options of each -----------------------------------------------------------------------


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), help="new folder (default: demo)")


def _phantoms(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, help="new folder, nnU-Net raw")
    add("--cases", type=int, default=60, help="one in five for validation (default: 60)")
    add(
        "--target",
        choices=("vertebrae", "tumour"),
        default="vertebrae",
        help="what is labelled: the bodies of L1 to L5, in any contrast (default), or tumours",
    )
    add("--shape", type=int, nargs=3, metavar="VOXELS", help="of a scan (default: about sagittal)")
    add("--spacing", type=float, nargs=3, metavar="MM", help="goes with --shape")
    add("--seed", type=int, default=0)


def _prepare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("raw", type=Path, help="nnU-Net raw, BIDS, or images/ + labels/")
    add("out", type=_place, help="folder of the store, also gs://")
    add("--merge-labels", action="store_true", help="one foreground class")
    add("--dimensions", type=int, choices=(2, 3), default=2, help="of a frame (default: 2, slices)")
    add("--spacing", nargs="+", default=["median"], help="median (default), native, or mm")
    add("--seed", type=int, default=0, help="of the split, where none is given")
    add("--validation-fraction", type=float, default=0.2, help="likewise")
    add("--allow-leak", action="store_true", help="go on where a split shares scans or subjects")
    add("--workers", type=int, default=None, help="processes (default: all CPUs)")


def _pretrain(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", type=Path, help="a file of configs/, or a config.json")
    add("--data", type=_store, required=True, help="prepared store, also gs://")
    add("--out", type=_place, required=True, help="run directory, also gs://")
    add("--resume", action="store_true", help="go on from the latest checkpoint")
    add("--fold", type=int, default=0, help="number of the split (default: 0)")
    add("--max-steps", type=int, help="budget in steps")
    add("--max-seconds", type=float, help="budget in seconds of training")
    add("--checkpoint-every", type=int, help="steps between checkpoints")
    several = parser.add_argument_group(
        "several processes", "SLURM and TPU pods say this by themselves (docs/hosts.md)"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    several.add_argument("--processes", type=int, metavar="N", help="how many there are")
    several.add_argument("--process", type=int, metavar="I", help="number of this one, from 0")


def _train(parser: argparse.ArgumentParser) -> None:
    _pretrain(parser)
    add = parser.add_argument
    add("--init", type=_place, help="run whose weights start this one")
    add("--teacher", type=_place, help="run whose predictions stand for all labels")


def _study(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", type=Path, help="a file of configs/studies/")
    add("--data", type=_store, required=True, help="prepared store, also gs://")
    add("--out", type=Path, required=True, help="folder of the study")
    add("--resume", action="store_true", help="go on, or share the work with other processes")


def _rehearse(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", type=Path, help="a file of configs/, or a config.json")
    add("--topology", required=True, help="TPU chips along each axis (v5e:4x4), or cpu:8")
    add("--data", type=_store, help="prepared store, for its channels and classes")
    add("--channels", type=int, default=1, help="of a scan, without --data (default: 1)")
    add("--classes", type=int, default=2, help="with background, without --data (default: 2)")
    add("--patches-per-device", type=int, help="default: the config's batch, for each device")
    add(
        "--search",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="find the largest batch that fits, by some more compilations (default: do)",
    )


def _predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "model",
        type=_place,
        nargs=1,
        help="a run (also gs://) or an export; further ones (folders with a config.json) are "
        "averaged with it",
    )
    add(
        "inputs",
        type=_place,
        nargs="+",
        help="scans, folders of scans, or of one DICOM series each",
    )
    add("--out", type=Path, required=True, help="folder of the masks")
    add("--dicom-seg", action="store_true", help="write a DICOM SEG beside each mask, too")
    add("--probabilities", action="store_true", help="write them too")
    add(
        "--uncertainty", action="store_true", help="write the entropy of each voxel beside the mask"
    )
    add("--overwrite", action="store_true", help="replace masks that are there")
    add(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="average over mirrorings (default: as the run's config says, like all that follows)",
    )
    add("--batch-size", type=int, help="most slices evaluated at once")
    add("--memory-budget", type=float, help="GiB for evaluating the network")
    add("--smallest-component", type=float, metavar="MM3", help="smaller ones become background")
    add(
        "--engine",
        choices=("auto", "jax", "onnxruntime"),
        default="auto",
        help="what evaluates the network (default: onnxruntime on a CPU where it is installed)",
    )


def _evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("predictions", type=Path, help="folder of predicted masks")
    add("references", type=Path, help="folder of reference masks")
    add("--out", type=Path, help="JSON file of the result")
    add("--merge-labels", action="store_true", help="one foreground class")
    add("--cases", nargs="+", help="only these cases")
    add(
        "--choose-component",
        action="store_true",
        help="find the best --smallest-component of penn predict; for validation cases only",
    )


def _report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=_place, help="run directory of penn train, or a folder of masks")
    add("--data", type=_store, help="the run's prepared store")
    add("--baseline", type=_place, help="another run on it, to compare with")
    add("--out", type=_place, help="HTML file (default: report.html in the folder)")


def _view(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("image", type=Path, help="scan, or a folder of one DICOM series")
    add("masks", type=Path, nargs="+", help="masks, shown over it")
    add("--port", type=int, default=0, help="to listen on (default: a free one)")
    add("--open", action="store_true", help="open the page in the browser")


def _export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=_place, help="a run directory (also gs://), or an export with weights")
    add("--to", choices=("torch", "onnx", "stablehlo", "monai"), required=True)
    add("--out", type=Path, required=True, help="new folder")
    add(
        "--fold",
        action="store_true",
        help="fold batch normalisation into the convolutions (always so for onnx and stablehlo)",
    )
    add("--metrics", type=Path, help="JSON file of penn evaluate, for the card")


def _import(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("origin", choices=("torch",), help="where the weights come from")
    add("folder", type=Path, help="folder of penn export --to torch (or monai)")
    add("--out", type=Path, required=True, help="new run directory")
    add("--weights", type=Path, help="state dict that was trained further: .safetensors or .pt")


def _no_options(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)


# ---- all of them, in the order of ``penn --help`` ----------------------------------------------

COMMANDS = (
    Command(
        "demo",
        commands.demo_command,
        "the whole path on synthetic spines",
        _demo,
        ("penn demo --out demo",),
        trains=True,
    ),
    Command(
        "phantoms",
        commands.phantoms_command,
        "synthetic spines with labels, to pre-train on",
        _phantoms,
        ("penn phantoms phantoms --cases 60 --shape 224 224 19 --spacing 1 1 4",),
    ),
    Command(
        "prepare",
        commands.prepare_command,
        "a folder of scans to a prepared store",
        _prepare,
        ("penn prepare raw prepared",),
    ),
    Command(
        "pretrain",
        commands.pretrain_command,
        "self-supervised run on a prepared store",
        _pretrain,
        ("penn pretrain configs/spine_t1.py --data prepared --out runs/pretrain",),
        takes_config=True,
        trains=True,
    ),
    Command(
        "train",
        commands.train_command,
        "supervised run on a prepared store",
        _train,
        ("penn train configs/spine_t1.py --data prepared --out runs/train",),
        takes_config=True,
        trains=True,
    ),
    Command(
        "rehearse",
        commands.rehearse_command,
        "the training step compiled for devices that are not there: time, memory, batch",
        _rehearse,
        (
            "penn rehearse configs/spine_t1.py --topology v5e:4x4",
            "penn rehearse configs/spine_t1.py --topology cpu:8 --no-search",
        ),
        takes_config=True,
    ),
    Command(
        "study",
        commands.study_command,
        "ways to train compared over seeds: one table with intervals",
        _study,
        ("penn study configs/studies/efficiency.py --data prepared --out studies/efficiency",),
        trains=True,
    ),
    Command(
        "predict",
        commands.predict_command,
        "scans to masks",
        _predict,
        ("penn predict runs/train scans/ --out masks",),
    ),
    Command(
        "evaluate",
        commands.evaluate_command,
        "six metrics and surface distances",
        _evaluate,
        ("penn evaluate masks labelsTr",),
    ),
    Command(
        "report",
        commands.report_command,
        "a run, or a folder of masks, as one HTML page",
        _report,
        ("penn report runs/train --data prepared", "penn report masks"),
    ),
    Command(
        "view",
        commands.view_command,
        "a scan and its masks in the browser",
        _view,
        ("penn view scans/a_0000.nii.gz masks/a.nii.gz",),
        has_result=False,
    ),
    Command(
        "export",
        commands.export_command,
        "a trained network for PyTorch, ONNX, XLA or MONAI",
        _export,
        ("penn export runs/train --to torch --out exported",),
    ),
    Command(
        "import",
        commands.import_command,
        "an export to PyTorch as a run again",
        _import,
        ("penn import torch exported --weights tuned.safetensors --out runs/tuned",),
    ),
    Command(
        "doctor",
        commands.doctor_command,
        "what is installed, what is missing and what would install it",
        _no_options,
        ("penn doctor --json",),
    ),
    Command(
        "completion",
        commands.completion_command,
        "a script by which the shell completes this command line",
        _completion,
        ("penn completion bash > ~/.local/share/bash-completion/completions/penn",),
        has_result=False,
    ),
)
