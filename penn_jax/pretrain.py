"""``penn pretrain``: self-supervision; the network restores patches that were corrupted."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from penn_jax.config import Config
from penn_jax.data.loader import stream
from penn_jax.data.remote import Place
from penn_jax.data.store import Store
from penn_jax.loop import fit
from penn_jax.model.augment import augment
from penn_jax.model.corrupt import corrupt
from penn_jax.model.network import Network, initialise
from penn_jax.optim.step import Objective, Reduce
from penn_jax.report.figures import Restoration, restoration_page
from penn_jax.run import load_model, network_channels
from penn_jax.task import DROPOUT_DRAW, check_fit, model_card, pretraining_cases
from penn_jax.together import at_work_by_all, is_primary, opened_by_all
from penn_jax.types import InputError

CORRUPTION_DRAW = DROPOUT_DRAW + 1

_DRAWN = 6
"""Patches on the page of restorations."""


def pretrain(
    config: Config,
    data: Place | str | Store,
    out: Place,
    resume: bool = False,
    fold: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the network to restore corrupted patches of the split's training cases and of all
    unlabelled ones.

    Validation and test cases are never seen, labels never used. The run's weights, all but the
    head, start a supervised run: ``penn train … --init RUN``. Arguments, results and errors are
    those of ``train``.
    """
    store = data if isinstance(data, Store) else Store(data)
    check_fit(config, store)
    if not any(value for part, value in asdict(config.pretrain).items() if part != "block"):
        raise InputError("--pretrain", "corrupts nothing", "one part above 0", "set one")
    cases = pretraining_cases(store, fold)
    config = replace(config, patches=replace(config.patches, foreground_fraction=0.0))
    card = model_card(store, fold, "restoration")
    channels = network_channels(card, config)
    key = jax.random.key(config.train.seed)
    variables = initialise(Network(config.model, channels), key, channels, card["dimensions"])
    with (
        at_work_by_all(out, resume) as work,
        opened_by_all(work.folder, config, card, resume, work.is_copy),
    ):
        result = fit(
            config,
            work.folder,
            store,
            cases,
            lambda axis: restoration_objective(Network(config.model, channels, axis), config, key),
            variables,
            progress=progress,
            publish=work.publish,
        )
        if is_primary():
            draw_restorations(config, work.folder, store, cases, key)
    return result


def restoration_objective(network: Network, config: Config, key: Key[Array, ""]) -> Objective:
    """Mean squared error of the restored voxels, over those corrupted in the global batch."""

    def objective(
        params: Any, batch_stats: Any, batch: Any, reduce: Reduce
    ) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
        image = augment(batch["image"], keys, config.photometry)
        corrupted, changed = corrupt(image, corruption_keys(keys), config.pretrain)
        variables = {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}
        restored, updated = network.apply(
            variables,
            corrupted,
            train=True,
            sample_keys=jax.vmap(lambda key: jax.random.fold_in(key, DROPOUT_DRAW))(keys),
            mutable=["batch_stats"],
        )
        squares, voxels = reduce(
            (
                jnp.sum(jnp.where(changed, restored[0] - image, 0.0) ** 2),
                jnp.sum(changed) * image.shape[-1],
            )
        )
        loss = squares / jnp.maximum(voxels, 1)
        return loss, (updated.get("batch_stats", {}), {"restoration_error": loss})

    return objective


def corruption_keys(sample_keys: Key[Array, " B"]) -> Key[Array, " B"]:
    """The keys of the samples' corruption, told apart from those of their other random draws."""
    return jax.vmap(lambda key: jax.random.fold_in(key, CORRUPTION_DRAW))(sample_keys)


def draw_restorations(
    config: Config, out: Path, store: Store, cases: Sequence[str], key: Key[Array, ""]
) -> None:
    """Draw a page of original, corrupted and restored patches: ``restoration.png`` of the run."""
    with contextlib.closing(
        stream(store, cases, config.patches, _DRAWN, config.train.seed)
    ) as batches:
        batch = next(batches)
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
    corrupted, _ = corrupt(jnp.asarray(batch["image"]), corruption_keys(keys), config.pretrain)
    _, card, variables = load_model(out)
    network = Network(config.model, network_channels(card, config))
    restored = jax.jit(network.apply)(variables, corrupted)[0]
    middle = config.patches.neighbours * len(card["channels"])
    rows = []
    for sample, place in enumerate(batch["place"]):
        triple = (np.asarray(x[sample, ..., middle]) for x in (batch["image"], corrupted, restored))
        # Of a block the plane in its middle.
        planes = (x if x.ndim == 2 else x[len(x) // 2] for x in triple)
        rows.append(Restoration(cases[int(place[0])], *planes))
    restoration_page(out / "restoration.png", rows)
