"""A run directory: what was asked (config), where (environment), what happened (log, events).

::

    config.json        the whole config, read back strictly
    environment.json   versions, devices, data hash, network's channels and labels
    metrics.jsonl      one line a log point
    events.out…        the same for TensorBoard
    checkpoints/       see ``optim/checkpoint.py``
    damaged/           checkpoints whose checksums did not agree, where there were any
    .lock              held while a process writes the run
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import filelock
import jax
from annotated_types import Gt
from pydantic import AllowInfNan, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from penn_jax.config import Config, to_json, write_json
from penn_jax.data.remote import Place
from penn_jax.data.usual import Usual
from penn_jax.model.network import Network, initialise
from penn_jax.optim.checkpoint import read_model
from penn_jax.progress import warn
from penn_jax.remote_run import checkpoints_at_hand
from penn_jax.settings import parse_section
from penn_jax.types import BusyError, InputError

_LOCK = ".lock"
_PACKAGES = ("penn-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class ModelCard(TypedDict):
    """What prediction must know of the data; kept in ``environment.json``."""

    channels: list[str]
    labels: dict[str, int]
    """Class of each label name."""
    label_values: list[int]
    """What each class is called in masks."""
    dimensions: Literal[2, 3]
    spacing: list[Annotated[float, Gt(0), AllowInfNan(False)]] | None
    """Of the frames' spatial axes, mm; None for the scan's own."""
    data_hash: str
    split_hash: str
    """Of the names to train and to validate on: a seeded split is not part of the data's hash."""
    fold: int
    task: Literal["segmentation", "restoration"]
    init: NotRequired[str | None]
    """The run whose weights started this one."""
    teacher: NotRequired[str]
    """The run whose predictions this one was trained on, in place of labels."""
    usual: NotRequired[Usual]
    """What the training cases look like; runs of earlier versions do not say."""


_CARD = TypeAdapter(ModelCard)


def network_channels(card: ModelCard, config: Config) -> int:
    """Input channels of the network: the scan's, for the slice and each of its neighbours."""
    return len(card["channels"]) * (2 * config.patches.neighbours + 1)


def output_channels(card: ModelCard, config: Config) -> int:
    """Output channels: the classes, or the input's own where the network restores it."""
    if card["task"] == "restoration":
        return network_channels(card, config)
    return len(card["labels"])


def check_split(run: Place, theirs: ModelCard, card: ModelCard) -> None:
    """Check that a run whose network starts or teaches another saw none of its validation cases.

    Raises:
        InputError: it was trained on another split of the same scans.
    """
    if theirs["data_hash"] == card["data_hash"] and theirs["split_hash"] != card["split_hash"]:
        raise InputError(
            run,
            f"it was trained on another split of these scans (fold {theirs['fold']})",
            f"the split of this run (fold {card['fold']}), so that no validation case was seen",
            "choose a run of the same --fold and the same preparation",
        )


@contextlib.contextmanager
def opened(out: Path, config: Config, card: ModelCard, resume: bool) -> Iterator[None]:
    """Make a run directory, or check that the one there is of the same config, and hold it.

    Args:
        out: the run directory.
        config: of the run.
        card: what prediction must know besides the config.
        resume: go on with what is there.

    Raises:
        InputError: the folder holds another run, or anything at all where ``resume`` is not given,
            or another process is writing it.
    """
    if out.exists() and not (out / "config.json").exists() and not _is_left_by_us(out):
        raise InputError(out, "is not empty and not a run", "a new folder", "choose another")
    out.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out / _LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BusyError(
            out, "another process is writing it", "a run of one process", "wait for it to end"
        ) from error
    try:
        if (out / "config.json").exists():
            _check_same(out, config, card, resume)
        else:
            write_json(out / "environment.json", {**environment(), **card})
            # Last: a folder with a config is a run.
            write_json(out / "config.json", to_json(config))
        yield
    finally:
        lock.release()


def _is_left_by_us(out: Path) -> bool:
    """Whether a folder holds nothing but what a run killed in its first moments leaves."""
    ours = (_LOCK, "environment.json")
    return out.is_dir() and all(
        path.name in ours or path.name.endswith(".partial") for path in out.iterdir()
    )


def _check_same(out: Path, config: Config, card: ModelCard, resume: bool) -> None:
    if not resume:
        raise InputError(out, "holds a run", "a new folder", "add --resume or choose another")
    if read_config(out) != config:
        raise InputError(
            out / "config.json",
            "was written by another config",
            "the config of this command",
            "resume with the same config and options, or choose another folder",
        )
    before, now = read_json(out / "environment.json"), environment()
    for name in ("versions", "devices"):
        if before.get(name) != now[name]:
            warn(f"{out}: was begun with other {name}; the last digits may differ")
    there = read_card(out)
    # What is usual follows from data and split, and runs of earlier versions do not say it.
    for name in sorted({*card, "init", "teacher"} - {"usual"}):
        value = card.get(name)
        if there.get(name) != value:
            raise InputError(
                out / "environment.json",
                f"the run was started with {name} = {there.get(name)!r}",
                repr(value),
                "resume with the same data, --fold, --init and --teacher, or choose another folder",
            )


def read_config(run: Place) -> Config:
    """The config of a run, every key and range checked.

    Raises:
        InputError: no run, or a config that does not fit.
    """
    return parse_section(Config, read_json(run / "config.json"), run / "config.json")


def read_card(run: Place) -> ModelCard:
    """The model card in ``environment.json`` of a run.

    Raises:
        InputError: there is none, or it is damaged.
    """
    return check_card(read_json(run / "environment.json"), run / "environment.json")


def check_card(values: Any, source: Place) -> ModelCard:
    """The model card in JSON values read from a file.

    Raises:
        InputError: a key is missing, or of another type or range.
    """
    try:
        return _CARD.validate_python(values, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            source, f"{where}: {first['msg']}", "what penn train wrote", "copy the run again"
        ) from error


def read_json(path: Place) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path, "cannot be read", "a run directory", "give a run") from error
    if not isinstance(values, dict):
        raise InputError(path, "is not a JSON object", "a run directory", "give a run")
    return values


def enable_compile_cache() -> None:
    """Keep compiled programs between processes, in the user's cache folder.

    ``JAX_COMPILATION_CACHE_DIR`` chooses another folder. A folder that cannot be written leaves
    jax without a cache: slower, not wrong.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penn_jax" / "xla"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))


def environment() -> dict[str, Any]:
    """Versions, commit and devices, for whoever repeats the run."""
    return {
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "commit": _commit(),
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree, where the package runs from one."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    answer = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None


def load_model(run: Place, newest: bool = False) -> tuple[Config, ModelCard, dict[str, Any]]:
    """The config, the model card and the variables of a run's best whole checkpoint.

    Args:
        run: the run directory.
        newest: take the newest checkpoint instead, which no validation case has chosen.

    Raises:
        InputError: no run, no whole checkpoint, or one of another network: the first array that
            differs is named with both shapes.
    """
    config, card = read_config(run), read_card(run)
    with checkpoints_at_hand(run) as (folder, bring):
        variables = read_model(folder, warn, newest, bring)
    there, wanted = _shapes(variables), _shapes(expected_variables(config, card))
    for name in sorted(there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            raise InputError(
                run / "checkpoints",
                f"{name} is {there.get(name, 'missing')}",
                f"{wanted.get(name, 'nothing')}, as config.json says",
                "copy the whole run again",
            )
    return config, card, variables


def expected_variables(config: Config, card: ModelCard) -> dict[str, Any]:
    """Shapes and types of the variables of the network that a config describes."""
    network = Network(config.model, output_channels(card, config))
    channels = network_channels(card, config)
    return jax.eval_shape(
        lambda: initialise(network, jax.random.key(0), channels, card["dimensions"])
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}
