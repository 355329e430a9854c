"""The command ``penn``: arguments in, one call of the part that does the work, one line on errors.

The parts are imported when they are needed, so that ``penn --help`` and the worker processes of
``penn prepare`` never wait for jax.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from penn_jax.completion import SHELLS
from penn_jax.config import Config, PrepareConfig
from penn_jax.settings import parse_section
from penn_jax.types import DivergedError, InputError, StoppedError

EXIT_INPUT = 2
"""What the user gave cannot be used; also what argparse exits with."""
EXIT_DIVERGED = 3
EXIT_STOPPED = 75
"""SIGTERM came and the run is saved: ``--resume`` goes on (``EX_TEMPFAIL`` of sysexits.h)."""
EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Tells a wrong command line in one line, as every other mistake."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_INPUT, f"penn: error: {self.prog}: {message}; see {self.prog} --help\n")


class _Version(argparse.Action):
    """Looks the version up when it is asked for: a source tree that is not installed has none."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"penn_jax {metadata.version('penn-jax')}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options, rest = _parser().parse_known_args(arguments)
    if rest and not options.takes_config:
        _parser().error(f"unknown option {rest[0]}")
    options.overrides = rest
    try:
        with _sigterm_unwinds():
            options.command(options)
    except InputError as error:
        return _fail(str(error), EXIT_INPUT)
    except DivergedError as error:
        return _fail(str(error), EXIT_DIVERGED)
    except StoppedError as error:
        interrupted = error.signal == signal.SIGINT
        return _fail(str(error), EXIT_INTERRUPTED if interrupted else EXIT_STOPPED)
    except OSError as error:
        where = error.filename or "a file"
        return _fail(
            f"{where}: {error.strerror or error}, expected to read or write it; "
            f"check the path, its permissions and the space left",
            EXIT_INPUT,
        )
    except KeyboardInterrupt as error:
        return _fail("interrupted", 128 + error.args[0] if error.args else EXIT_INTERRUPTED)
    return 0


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that what is half done is tidied away."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(number)

    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int) -> int:
    print(f"penn: error: {' '.join(message.split())}", file=sys.stderr)
    return code


# ---- the commands ------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> None:
    from penn_jax.demo import demo

    _start_jax()
    demo(options.out, progress=not options.quiet)


def _prepare(options: argparse.Namespace) -> None:
    from rich.console import Console

    from penn_jax.data.findings import summary
    from penn_jax.data.prepare import prepare
    from penn_jax.data.store import Store

    config = parse_section(
        PrepareConfig,
        {
            "dimensions": options.dimensions,
            "spacing": _spacing(options.spacing),
            "merge_labels": options.merge_labels,
            "validation_fraction": options.validation_fraction,
            "seed": options.seed,
            "allow_leak": options.allow_leak,
        },
        "command line",
    )
    store = prepare(options.raw, options.out, config, options.workers, not options.quiet)
    Console().print(summary(Store(store).manifest))


def _pretrain(options: argparse.Namespace) -> None:
    from penn_jax.pretrain import pretrain

    _start_jax()
    config = _config(options)
    pretrain(config, options.data, options.out, options.resume, options.fold, not options.quiet)


def _train(options: argparse.Namespace) -> None:
    from penn_jax.train import train

    _start_jax()
    result = train(
        _config(options),
        options.data,
        options.out,
        options.init,
        options.resume,
        options.fold,
        not options.quiet,
        options.teacher,
    )
    dice = f", validation Dice {result['dice']:.4f}" if "dice" in result else ""
    print(
        f"{options.out}: {result['step']} steps in {result['seconds']:.0f} s of training "
        f"and {result['paused']:.0f} s of validation and checkpoints{dice}"
    )
    if dice and not options.quiet:
        _report_of_training(options)


def _report_of_training(options: argparse.Namespace) -> None:
    from penn_jax.run_report import try_report

    page = try_report(options.out, options.data)
    if page is not None:
        print(f"{page}: its report")


def _study(options: argparse.Namespace) -> None:
    from penn_jax.config_file import read_study_file
    from penn_jax.report.study_tables import study_markdown
    from penn_jax.study import study

    _start_jax()
    table = study(
        read_study_file(options.config),
        options.data,
        options.out,
        options.resume,
        not options.quiet,
    )
    print(study_markdown(table))


def _predict(options: argparse.Namespace) -> None:
    from penn_jax.segment import predict

    _start_jax()
    given = {
        "batch_size": options.batch_size,
        "mirror": options.mirror,
        "memory_budget": options.memory_budget,
        "smallest_component": options.smallest_component,
    }
    written = predict(
        [*options.model, *options.inputs],
        options.out,
        {name: value for name, value in given.items() if value is not None},
        options.probabilities,
        options.overwrite,
        options.engine,
        not options.quiet,
        dicom_seg=options.dicom_seg,
        uncertainty=options.uncertainty,
    )
    print(f"{options.out}: {len(written)} masks")


def _export(options: argparse.Namespace) -> None:
    from penn_jax.exporting import export

    _start_jax()
    export(options.model, options.to, options.out, options.fold, options.metrics)
    print(f"{options.out}: {options.model} for {options.to}; its model card says how to use it")


def _import(options: argparse.Namespace) -> None:
    from penn_jax.exported import import_torch

    _start_jax()
    import_torch(options.folder, options.out, options.weights)
    print(f"{options.out}: a run with the weights of {options.weights or options.folder}")


def _evaluate(options: argparse.Namespace) -> None:
    from rich.console import Console

    from penn_jax.components import choice_lines, choice_table
    from penn_jax.evaluate import evaluate
    from penn_jax.report.tables import label_table, six_metric_table

    result = evaluate(
        options.predictions,
        options.references,
        options.merge_labels,
        options.cases,
        options.json,
        not options.quiet,
        options.choose_component,
    )
    console = Console()
    console.print(six_metric_table(result))
    if len(result["labels"]) > 1:
        console.print(label_table(result))
    # Plain print: rich would read brackets in a name as its own marks.
    if result["extra"]:
        print(f"without a reference, not counted: {', '.join(result['extra'])}")
    if result["left_out"]:
        print(f"references that --cases leaves out: {len(result['left_out'])}")
    if options.choose_component:
        console.print(choice_table(result["component_choice"]))
        print("\n".join(choice_lines(result["component_choice"])))


def _report(options: argparse.Namespace) -> None:
    from penn_jax.predictions_report import holds_predictions, report_predictions
    from penn_jax.run_report import report

    if holds_predictions(options.run):
        print(report_predictions(options.run, options.out, not options.quiet))
        return
    if options.data is None:
        raise InputError(
            options.run,
            "is no folder of penn predict, and no --data is given",
            "masks with their predictions.json, or a run and its prepared store",
            "check the path, or add --data",
        )
    _start_jax()
    print(report(options.run, options.data, options.baseline, options.out, not options.quiet))


def _view(options: argparse.Namespace) -> None:
    from penn_jax.viewer import view

    view(options.image, options.masks, options.port, options.open)


def _doctor(options: argparse.Namespace) -> None:
    import json

    from penn_jax.doctor import diagnose, tell

    _start_jax()
    found = diagnose()
    print(json.dumps(found, indent=2) if options.json else tell(found))


def _completion(options: argparse.Namespace) -> None:
    from penn_jax.completion import script

    print(script(_parser(), options.shell))


# ---- options -----------------------------------------------------------------------------------


def _parser() -> _Parser:
    parser = _Parser(prog="penn", description="Patch-based MRI segmentation in JAX.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.epilog = "example: penn demo --out demo"
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str,
        run: Any,
        text: str,
        example: str,
        takes_config: bool = False,
        progress: bool = True,
    ) -> Any:
        sub = commands.add_parser(
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

    sub = command("demo", _demo, "the whole path on synthetic spines", "penn demo --out demo")
    sub.add_argument("--out", type=Path, default=Path("demo"), help="new folder (default: demo)")

    sub = command(
        "prepare", _prepare, "a folder of scans to a prepared store", "penn prepare raw prepared"
    )
    sub.add_argument("raw", type=Path, help="nnU-Net raw, BIDS, or images/ + labels/")
    sub.add_argument("out", type=Path, help="folder of the store")
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
        ("pretrain", _pretrain, "self-supervised run on a prepared store"),
        ("train", _train, "supervised run on a prepared store"),
    ):
        example = f"penn {name} configs/spine_t1.py --data prepared --out runs/{name}"
        sub = command(name, run, text, example, takes_config=True)
        sub.epilog += "\nany value of the config: --optim.learning-rate 0.02 (penn_jax/config.py)"
        sub.add_argument("config", type=Path, help="a file of configs/, or a config.json")
        sub.add_argument("--data", type=Path, required=True, help="prepared store")
        sub.add_argument("--out", type=Path, required=True, help="run directory")
        sub.add_argument("--resume", action="store_true", help="go on from the latest checkpoint")
        sub.add_argument("--fold", type=int, default=0, help="number of the split (default: 0)")
        sub.add_argument("--max-steps", type=int, help="budget in steps")
        sub.add_argument("--max-seconds", type=float, help="budget in seconds of training")
        sub.add_argument("--checkpoint-every", type=int, help="steps between checkpoints")
        if name == "train":
            sub.add_argument("--init", type=Path, help="run whose weights start this one")
            sub.add_argument(
                "--teacher", type=Path, help="run whose predictions stand for all labels"
            )

    sub = command(
        "study",
        _study,
        "ways to train compared over seeds: one table with intervals",
        "penn study configs/studies/efficiency.py --data prepared --out studies/efficiency",
    )
    sub.add_argument("config", type=Path, help="a file of configs/studies/")
    sub.add_argument("--data", type=Path, required=True, help="prepared store")
    sub.add_argument("--out", type=Path, required=True, help="folder of the study")
    sub.add_argument(
        "--resume", action="store_true", help="go on, or share the work with other processes"
    )

    sub = command(
        "predict", _predict, "scans to masks", "penn predict runs/train scans/ --out masks"
    )
    sub.add_argument(
        "model",
        type=Path,
        nargs=1,
        help="a run or an export; further ones (folders with a config.json) are averaged with it",
    )
    sub.add_argument(
        "inputs", type=Path, nargs="+", help="scans, folders of scans, or of one DICOM series each"
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
        _export,
        "a trained network for PyTorch, ONNX, XLA or MONAI",
        "penn export runs/train --to torch --out exported",
    )
    sub.add_argument("model", type=Path, help="a run directory, or an export with weights")
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
        _import,
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
        "evaluate", _evaluate, "six metrics and surface distances", "penn evaluate masks labelsTr"
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
        _report,
        "a run, or a folder of masks, as one HTML page",
        "penn report runs/train --data prepared; penn report masks",
    )
    sub.add_argument("run", type=Path, help="run directory of penn train, or a folder of masks")
    sub.add_argument("--data", type=Path, help="the run's prepared store")
    sub.add_argument("--baseline", type=Path, help="another run on it, to compare with")
    sub.add_argument("--out", type=Path, help="HTML file (default: report.html in the folder)")

    sub = command(
        "view",
        _view,
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
        _doctor,
        "what is installed, what is missing and what would install it",
        "penn doctor --json",
        progress=False,
    )
    sub.add_argument("--json", action="store_true", help="the same for programs")

    sub = command(
        "completion",
        _completion,
        "a script by which the shell completes this command line",
        "penn completion bash > ~/.local/share/bash-completion/completions/penn",
        progress=False,
    )
    sub.add_argument("shell", choices=SHELLS)
    return parser


def _spacing(words: Sequence[str]) -> Any:
    if words[0] in ("median", "native") and len(words) == 1:
        return words[0]
    try:
        values = tuple(float(word) for word in words)
    except ValueError:
        values = ()
    if len(values) < 2 or min(values) <= 0:
        raise InputError("--spacing", " ".join(words), "median, native or mm > 0", "correct it")
    return values


def _config(options: argparse.Namespace) -> Config:
    """The config of the file, with the command line's changes."""
    from penn_jax.config_file import overridden, read_config_file

    config = read_config_file(options.config)
    train: dict[str, Any] = {}
    if options.max_steps is not None or options.max_seconds is not None:
        # One given alone replaces the config's whole budget.
        train |= {"max_steps": options.max_steps or 0, "max_seconds": options.max_seconds or 0.0}
    if options.checkpoint_every is not None:
        train |= {"checkpoint_every": options.checkpoint_every}
    return overridden(replace(config, train=replace(config.train, **train)), options.overrides)


def _start_jax() -> None:
    import logging

    from penn_jax.run import enable_compile_cache

    # Orbax and Grain warn about what is meant; what is wrong arrives as an exception. Of the arrays
    # of one failed save each is a task of its own, whose error asyncio would print as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    enable_compile_cache()


if __name__ == "__main__":
    sys.exit(main())
