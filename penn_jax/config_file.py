"""Configs and studies from files of ``configs/``, and changes to them from the command line."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from penn_jax.config import Arm, Config, Section, Study, to_json
from penn_jax.run import read_json
from penn_jax.settings import parse_section
from penn_jax.types import InputError


def read_config_file(path: Path) -> Config:
    """The config of a Python file that sets ``config``, or of a run's ``config.json``.

    Raises:
        InputError: there is none, the file fails, or a value is out of its range.
    """
    if path.suffix == ".json":
        return parse_section(Config, read_json(path), path)
    return _run_file(path, "config", Config)


def read_study_file(path: Path) -> Study:
    """The study of a Python file that sets ``study``.

    Raises:
        InputError: there is none, the file fails, a value is out of its range, two arms share a
            name, or a baseline is no other arm.
    """
    study = _run_file(path, "study", Study)
    names = [arm.name for arm in study.arms]
    for arm in study.arms:
        if names.count(arm.name) > 1:
            raise InputError(path, f"two arms are called {arm.name}", "a name each", "rename one")
        if arm.baseline is not None and arm.baseline not in {*names} - {arm.name}:
            raise InputError(
                path, f"arm {arm.name} has the baseline {arm.baseline}", "another arm", "name one"
            )
        if arm.teacher is not None:
            _check_taught(path, arm, study)
        if arm.phantoms and (arm.pretrain is None or arm.teacher is not None):
            raise InputError(
                path,
                f"arm {arm.name} has phantoms, but no pretrain or a teacher too",
                "a pretrain that learns from them",
                "correct the arm",
            )
    for part, values in (("seeds", study.seeds), ("folds", study.folds)):
        if len(set(values)) < len(values):
            raise InputError(path, f"{part} are {values}", "each once", "remove the repeated")
    return study


def _check_taught(path: Path, arm: Arm, study: Study) -> None:
    teacher = next((other for other in study.arms if other.name == arm.teacher), None)
    wrong = None
    if teacher is None or teacher.teacher is not None:
        wrong = f"arm {arm.name} has the teacher {arm.teacher}"
    elif arm.pretrain is None or arm.learning_rates:
        wrong = f"arm {arm.name} has a teacher, but no pretrain or learning_rates too"
    if wrong:
        expected = "another arm without a teacher, a pretrain to be taught in, and no sweep"
        raise InputError(path, wrong, expected, "correct the arm")


def _run_file(path: Path, name: str, kind: type[Section]) -> Section:
    expected, remedy = f"a Python file that sets {name} = {kind.__name__}(…)", "see configs/"
    if not path.is_file():
        raise InputError(path, "does not exist", expected, remedy)
    try:
        # Whole: a file finds its neighbours by its own path, from whichever folder it is given.
        value = runpy.run_path(str(path.resolve())).get(name)
    except (Exception, SystemExit) as error:  # whatever the file raises is its writer's to mend
        raise InputError(path, f"{type(error).__name__}: {error}", expected, remedy) from error
    if not isinstance(value, kind):
        raise InputError(path, f"sets no {name}", expected, remedy)
    return parse_section(kind, to_json(value), path)


def overridden(config: Config, overrides: Sequence[str]) -> Config:
    """The config with options such as ``--optim.learning-rate 0.02`` in place of its values.

    Raises:
        InputError: an unknown option, or a value that does not fit.
    """
    if overrides:
        config = _parsed(config, overrides)
    return parse_section(Config, to_json(config), "command line")


def _parsed(config: Config, overrides: Sequence[str]) -> Config:
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(Config, default=config, args=overrides, prog="penn")
    except SystemExit as stop:
        # tyro draws a box; its first lines, up to a rule, are what is wrong.
        lines = [line.strip("│ ") for line in said.getvalue().splitlines()[1:]]
        wrong = " ".join(lines[: next((i for i, x in enumerate(lines) if set(x) <= {"─"}), 2)])
        wrong = re.sub(r"\s+", " ", wrong)
        names = ", ".join(f"--{field.name}.…" for field in fields(Config) if field.name != "name")
        raise InputError("command line", wrong, names, "see penn_jax/config.py") from stop
