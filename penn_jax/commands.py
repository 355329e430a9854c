"""What each command does with its options: it calls the part that does the work, returns its end.

The parts are imported when they are needed, so that ``penn --help`` and the worker processes of
``penn prepare`` never wait for jax.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from penn_jax.config import Config, PrepareConfig
from penn_jax.progress import Outcome
from penn_jax.settings import parse_section
from penn_jax.types import InputError


def demo_command(options: argparse.Namespace) -> Outcome:
    from penn_jax.demo import demo
    from penn_jax.report.tables import six_metric_table

    _start_jax()
    evaluation = demo(options.out, progress=not options.quiet)
    table = six_metric_table(evaluation, "Test cases (synthetic)")
    line = f"masks, metrics.json, overlay.png and curves.png are in {options.out}"
    return Outcome({"folder": str(options.out), **evaluation}, (table, line))


def phantoms_command(options: argparse.Namespace) -> Outcome:
    from penn_jax.data.phantom import write_dataset

    write_dataset(
        options.out,
        options.cases,
        options.seed,
        shape=options.shape and tuple(options.shape),
        spacing=options.spacing and tuple(options.spacing),
        target=options.target,
    )
    line = f"{options.out}: {options.cases} synthetic spines, {options.target} labelled"
    return Outcome({"raw": str(options.out), "cases": options.cases}, (line,))


def prepare_command(options: argparse.Namespace) -> Outcome:
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
    manifest = Store(store).manifest
    result = {
        "store": str(store),
        "data_hash": manifest["data_hash"],
        "cases": len(manifest["cases"]),
        "labelled": sum(case["labelled"] for case in manifest["cases"].values()),
        "splits": [
            {"train": len(split["train"]), "validation": len(split["validation"])}
            for split in manifest["splits"]
        ],
        "findings": manifest["findings"],
    }
    return Outcome(result, (summary(manifest),))


def pretrain_command(options: argparse.Namespace) -> Outcome | None:
    from penn_jax.distributed import joined

    with joined(options.coordinator, options.processes, options.process):
        from penn_jax.pretrain import pretrain
        from penn_jax.together import is_primary

        _start_jax(several=True)
        result = pretrain(
            _config(options),
            options.data,
            options.out,
            options.resume,
            options.fold,
            not options.quiet,
        )
        if not is_primary():
            return None
    return Outcome({"run": str(options.out), **result}, (_of_training(options, result),))


def train_command(options: argparse.Namespace) -> Outcome | None:
    from penn_jax.distributed import joined

    with joined(options.coordinator, options.processes, options.process):
        from penn_jax.together import is_primary
        from penn_jax.train import train

        _start_jax(several=True)
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
        if not is_primary():
            return None
    page = None
    if "dice" in result and not options.quiet:
        from penn_jax.run_report import try_report

        page = try_report(options.out, options.data)
    lines = [_of_training(options, result)] + ([] if page is None else [f"{page}: its report"])
    report = None if page is None else str(page)
    return Outcome({"run": str(options.out), **result, "report": report}, lines)


def _of_training(options: argparse.Namespace, result: Mapping[str, Any]) -> str:
    dice = f", validation Dice {result['dice']:.4f}" if "dice" in result else ""
    return (
        f"{options.out}: {result['step']} steps in {result['seconds']:.0f} s of training "
        f"and {result['paused']:.0f} s of validation and checkpoints{dice}"
    )


def rehearse_command(options: argparse.Namespace) -> Outcome:
    from penn_jax.config_file import overridden, read_config_file
    from penn_jax.rehearse import rehearse
    from penn_jax.report.rehearsal import lines

    found = rehearse(
        overridden(read_config_file(options.config), options.overrides),
        options.topology,
        options.data,
        options.channels,
        options.classes,
        options.patches_per_device,
        options.search,
        not options.quiet,
    )
    return Outcome(found, lines(found))


def study_command(options: argparse.Namespace) -> Outcome:
    from penn_jax.config_file import read_study_file
    from penn_jax.report.study_tables import study_markdown
    from penn_jax.study import study

    _start_jax(several=True)
    table = study(
        read_study_file(options.config),
        options.data,
        options.out,
        options.resume,
        not options.quiet,
    )
    return Outcome(table, (study_markdown(table),))


def predict_command(options: argparse.Namespace) -> Outcome:
    from penn_jax.predictions import FILE
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
    result = {"masks": [str(path) for path in written], "predictions": str(options.out / FILE)}
    return Outcome(result, (f"{options.out}: {len(written)} masks",))


def export_command(options: argparse.Namespace) -> Outcome:
    from penn_jax.exporting import export

    _start_jax()
    export(options.model, options.to, options.out, options.fold, options.metrics)
    line = f"{options.out}: {options.model} for {options.to}; its model card says how to use it"
    return Outcome({"export": str(options.out), "format": options.to}, (line,))


def import_command(options: argparse.Namespace) -> Outcome:
    from penn_jax.exported import import_torch

    _start_jax()
    import_torch(options.folder, options.out, options.weights)
    weights = str(options.weights or options.folder)
    line = f"{options.out}: a run with the weights of {weights}"
    return Outcome({"run": str(options.out), "weights": weights}, (line,))


def evaluate_command(options: argparse.Namespace) -> Outcome:
    from penn_jax.components import choice_lines, choice_table
    from penn_jax.evaluate import evaluate
    from penn_jax.report.tables import label_table, six_metric_table

    result = evaluate(
        options.predictions,
        options.references,
        options.merge_labels,
        options.cases,
        options.out,
        not options.quiet,
        options.choose_component,
    )
    text: list[RenderableType] = [six_metric_table(result)]
    if len(result["labels"]) > 1:
        text.append(label_table(result))
    if result["extra"]:
        text.append(f"without a reference, not counted: {', '.join(result['extra'])}")
    if result["left_out"]:
        text.append(f"references that --cases leaves out: {len(result['left_out'])}")
    if options.choose_component:
        choice = result["component_choice"]
        text += [choice_table(choice), *choice_lines(choice)]
    return Outcome(result, text)


def report_command(options: argparse.Namespace) -> Outcome:
    from penn_jax.predictions_report import holds_predictions, report_predictions
    from penn_jax.run_report import report

    progress = not options.quiet
    if isinstance(options.run, Path) and holds_predictions(options.run):
        page = report_predictions(options.run, options.out, progress)
    elif options.data is None:
        raise InputError(
            options.run,
            "is no folder of penn predict, and no --data is given",
            "masks with their predictions.json, or a run and its prepared store",
            "check the path, or add --data",
        )
    else:
        _start_jax()
        page = report(options.run, options.data, options.baseline, options.out, progress)
    return Outcome({"page": str(page)}, (str(page),))


def view_command(options: argparse.Namespace) -> Outcome:
    from penn_jax.viewer import view

    view(options.image, options.masks, options.port, options.open)
    return Outcome({}, ())


def doctor_command(options: argparse.Namespace) -> Outcome:
    from penn_jax.doctor import diagnose, lines

    _start_jax()
    found = diagnose()
    return Outcome(found, lines(found))


def completion_command(options: argparse.Namespace) -> Outcome:
    from penn_jax.completion import script
    from penn_jax.options import build_parser

    return Outcome({}, (script(build_parser(), options.shell),))


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


def _start_jax(several: bool = False) -> None:
    import logging

    from penn_jax.distributed import refuse_several
    from penn_jax.run import enable_compile_cache

    if not several:
        refuse_several()
    # Orbax and Grain warn about what is meant; what is wrong arrives as an exception. Of the arrays
    # of one failed save each is a task of its own, whose error asyncio would print as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    enable_compile_cache()
