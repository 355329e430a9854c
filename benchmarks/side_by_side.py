"""Programs that take turns, each in a process of its own, and the training data they all are given.

For ``pipeline.py`` and ``train.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from made_stores import case_record, manifest_of, write_manifest

from penn_jax.config import Config
from penn_jax.data.store import Store, StoreWriter


class Served:
    """A function that is built, and called, in a process of its own.

    Args:
        build: makes the function from ``arguments``, in the process.
        arguments: pickled, like those of the function and what it returns.
    """

    def __init__(self, build: Callable[..., Callable[..., Any]], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, build, arguments))
        self._process.start()
        there.close()

    def __call__(self, *arguments: Any) -> Any:
        self._connection.send(arguments)
        return self._answer()

    def failure(self) -> str | None:
        """Wait until it is built; why it cannot be, or None."""
        try:
            self._answer()
        except RuntimeError as error:
            return str(error)
        return None

    def close(self) -> None:
        self._connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()

    def _answer(self) -> Any:
        try:
            done, value = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"ended with exit code {self._process.exitcode}") from None
        if not done:
            raise RuntimeError(value)
        return value


def _serve(connection: Any, build: Callable[..., Callable[..., Any]], arguments: Any) -> None:
    def answer(function: Callable[..., Any], values: Any, keep: bool) -> Any:
        try:
            result = function(*values)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            connection.send((False, f"{type(error).__name__}: {reason}"))
            return None
        connection.send((True, None if keep else result))
        return result

    if (function := answer(build, arguments, keep=True)) is None:
        return
    with contextlib.suppress(EOFError):  # the other side closes it
        while True:
            answer(function, connection.recv(), keep=False)


def made_store(folder: Path, side: int, cases: int) -> str:
    """A store of slices of noise, a square of foreground in each, where no other is given."""
    rng, writer = np.random.default_rng(0), StoreWriter(folder)
    label = np.zeros((1, side, side), np.uint8)
    label[:, side // 4 : side // 2, side // 4 : side // 2] = 1
    records = {}
    for name in (f"case{number}" for number in range(cases)):
        image = rng.normal(size=(1, side, side, 1)).astype(np.float32)
        writer.write_case(name, image, label)
        records[name] = case_record(image.shape, label)
        records[name]["voxels"] = {str(n): int((label == n).sum()) for n in (0, 1)}
    labels = {"background": 0, "foreground": 1}
    write_manifest(folder, manifest_of(records, labels=labels, label_values=[0, 1]))
    return str(folder)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    default = Path(__file__).parents[1] / "configs/tumour_t1gd.py"
    parser.add_argument("--config", type=Path, default=default)
    parser.add_argument("--data", type=Path, help="prepared store (default: cases of noise)")
    parser.add_argument(
        "--size", type=int, nargs=2, help="of the patches, in place of the config's"
    )
    parser.add_argument("--batch-size", type=int, help="in place of the config's")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)


def chosen_data(options: argparse.Namespace, stack: ExitStack) -> tuple[Config, Store, list[str]]:
    """The config, the store and its training cases that the command line asks for."""
    from penn_jax.config_file import read_config_file  # with jax, which not all processes need

    config = read_config_file(options.config)
    size = tuple(options.size or config.patches.size)
    config = replace(
        config,
        patches=replace(config.patches, size=size),
        train=replace(config.train, batch_size=options.batch_size or config.train.batch_size),
    )
    path = options.data
    if path is None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="noise_"))
        path = made_store(Path(folder), size[0], cases=64)
    store = Store(path)
    if store.manifest["dimensions"] != 2:
        raise SystemExit(f"{path}: of volumes; the comparison is of slices")
    records = store.manifest["cases"]
    return config, store, [name for name in store.split(0)["train"] if records[name]["labelled"]]


def described(config: Config, cases: Sequence[str]) -> str:
    patches = config.patches
    return (
        f"{config.name}: {len(cases)} cases, patches of {'×'.join(map(str, patches.size))}"
        f" with {patches.neighbours} neighbours, batches of {config.train.batch_size}"
    )
