"""A run directory: what was asked (config), where (environment), what happened (log, events).

::

    config.json        the whole config, read back strictly
    environment.json   versions, devices, data hash, network's channels and labels
    metrics.jsonl      one line a log point
    events.out…        the same for TensorBoard
    checkpoints/       see ``optim/checkpoint.py``
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from penn_jax.config import Config, to_json, write_json
from penn_jax.optim.checkpoint import Checkpoints
from penn_jax.settings import parse_section
from penn_jax.types import InputError

_PACKAGES = ("penn-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def create(out: Path, config: Config, model_card: Mapping[str, Any], resume: bool) -> None:
    """Make a run directory, or check that the one there is of the same config.

    Args:
        out: the run directory.
        config: of the run.
        model_card: what prediction must know besides the config: channels, labels, spacing, data.
        resume: go on with what is there.

    Raises:
        InputError: the folder holds another run, or anything at all where ``resume`` is not given.
    """
    if (out / "config.json").exists():
        if not resume:
            raise InputError(out, "holds a run", "a new folder", "add --resume or choose another")
        if read_config(out) != config:
            raise InputError(
                out / "config.json",
                "was written by another config",
                "the config of this command",
                "resume with the same config and options, or choose another folder",
            )
        there = read_environment(out)
        for name, value in model_card.items():
            if there.get(name) != value:
                raise InputError(
                    out / "environment.json",
                    f"the run was started with {name} = {there.get(name)!r}",
                    repr(value),
                    "resume with the same data, --fold and --init, or choose another folder",
                )
        return
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "is not empty and not a run", "a new folder", "choose another")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "environment.json", {**environment(), **model_card})
    # Last: a folder with a config is a run.
    write_json(out / "config.json", to_json(config))


def read_config(run: Path) -> Config:
    """The config of a run, every key and range checked.

    Raises:
        InputError: no run, or a config that does not fit.
    """
    return parse_section(Config, read_json(run / "config.json"), run / "config.json")


def read_environment(run: Path) -> dict[str, Any]:
    """``environment.json`` of a run.

    Raises:
        InputError: there is none, or it is damaged.
    """
    return read_json(run / "environment.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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


def load_model(run: Path) -> tuple[Config, dict[str, Any], dict[str, Any]]:
    """The config, the model card and the variables of a run's best checkpoint.

    Raises:
        InputError: no run, no checkpoint, or one that is damaged or of another network.
    """
    config, card = read_config(run), read_environment(run)
    checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    step = checkpoints.best()
    if step is None:
        raise InputError(run, "no finished checkpoint", "a trained run", "train first")
    variables = checkpoints.restore_model(step)
    checkpoints.close()
    return config, card, variables


def load_all_but_heads(run: Path, fresh: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Start from another run's weights: all but the heads, whose classes may differ.

    Args:
        run: the run to load from.
        fresh: newly drawn variables of the network to train.

    Returns:
        The variables with every part loaded but ``head_…``, and for each parameter whether it was
        loaded.

    Raises:
        InputError: a part is missing there or of another shape; the first one is named.
    """
    _, _, loaded = load_model(run)
    there = {jax.tree_util.keystr(path): leaf for path, leaf in _leaves(loaded)}

    def choose(path: tuple[Any, ...], leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if _is_head(path):
            return leaf
        if name not in there or there[name].shape != leaf.shape:
            found = there[name].shape if name in there else "nothing"
            raise InputError(
                run, f"{name} is {found}", f"shape {leaf.shape}", "use the same --model options"
            )
        return there[name]

    variables = jax.tree_util.tree_map_with_path(choose, dict(fresh))
    pretrained = jax.tree_util.tree_map_with_path(
        lambda path, _: not _is_head(path), variables["params"]
    )
    return variables, pretrained


def _leaves(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _is_head(path: tuple[Any, ...]) -> bool:
    return any(str(getattr(part, "key", "")).startswith("head_") for part in path)


class Log:
    """``metrics.jsonl`` and TensorBoard events of a run.

    Args:
        out: the run directory.
        step: lines past this step are dropped: a resumed run writes them again.
    """

    def __init__(self, out: Path, step: int):
        from tensorboardX import SummaryWriter

        self._path = out / "metrics.jsonl"
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            temporary = self._path.with_suffix(".partial")
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            temporary.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(out), purge_step=step + 1 if step else None)

    def write(self, point: Mapping[str, Any]) -> None:
        """Append one log point; its ``step`` is the TensorBoard step, NaN and Inf become null."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in point.items()
        }
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in finite.items():
            if isinstance(value, float) and name != "seconds":
                self._events.add_scalar(name, value, point["step"])

    def close(self) -> None:
        """Write what is buffered and close the files."""
        self._file.close()
        self._events.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut off by a kill
