"""The synthetic spines on which an arm of a study is pre-trained."""

from __future__ import annotations

import tempfile
from pathlib import Path

import filelock

from penn_jax.config import PrepareConfig
from penn_jax.data.phantom import write_dataset
from penn_jax.data.prepare import prepare
from penn_jax.data.store import Store
from penn_jax.types import InputError

_SEED = 0
"""Of the phantoms: all runs of a study share them."""


def check_phantoms(store: Store) -> None:
    """Check that a network that has learnt from phantoms can go on with these scans.

    Raises:
        InputError: the scans have several channels.
    """
    channels = store.manifest["channels"]
    if len(channels) != 1:
        raise InputError(
            store.path,
            f"channels {', '.join(channels)}",
            "one channel, as the phantoms have",
            "leave phantoms out of the study",
        )


def phantom_store(folder: Path, cases: int, like: Store) -> Store:
    """A prepared store of lumbar spines with labelled vertebrae, made when first asked for.

    Args:
        folder: the stores are laid in it, each named after its number of cases.
        cases: how many.
        like: the size of its first training case, its axes and its spacing are the phantoms'.
    """
    manifest = like.manifest
    scan = manifest["cases"][like.split(0)["train"][0]]
    i, j, k = scan["shape"]
    di, dj, dk = scan["native_spacing"]
    options = PrepareConfig(
        dimensions=manifest["dimensions"],
        spacing=tuple(manifest["spacing"]) if manifest["spacing"] else "native",
    )
    store = folder / str(cases)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{store}.lock"):
        if not store.exists():
            with tempfile.TemporaryDirectory(dir=folder) as raw:
                spines = Path(raw) / "spines"
                write_dataset(
                    spines,
                    cases,
                    _SEED,
                    shape=(i, j, k),
                    spacing=(di, dj, dk),
                    target="vertebrae",
                )
                prepare(spines, store, options)
    return Store(store)
