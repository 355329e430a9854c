"""``penn pretrain``: self-supervision; the network restores blocks that were masked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from penn_jax.config import Config, PretrainConfig
from penn_jax.data.leaks import listed, pretraining_pool
from penn_jax.data.store import Store
from penn_jax.loop import fit
from penn_jax.model.augment import augment
from penn_jax.model.network import Network, initialise
from penn_jax.optim.step import Objective, Reduce
from penn_jax.run import network_channels, opened
from penn_jax.task import DROPOUT_DRAW, check_fit, model_card
from penn_jax.types import InputError

MASK_DRAW = DROPOUT_DRAW + 1


def pretrain(
    config: Config,
    data: Path,
    out: Path,
    resume: bool = False,
    fold: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the network to restore masked patches of the ``train`` cases and all unlabelled ones.

    Validation and test cases are never seen, labels never used. The run's weights, all but the
    head, start a supervised run: ``penn train … --init RUN``. Arguments, results and errors are
    those of ``train``.
    """
    store = Store(data)
    check_fit(config, store)
    cases = pretraining_cases(store, fold)
    config = replace(config, patches=replace(config.patches, foreground_fraction=0.0))
    card = model_card(store, fold, "restoration")
    channels = network_channels(card, config)
    key = jax.random.key(config.train.seed)
    variables = initialise(Network(config.model, channels), key, channels, card["dimensions"])
    with opened(out, config, card, resume):
        return fit(
            config,
            out,
            store,
            cases,
            lambda axis: restoration_objective(Network(config.model, channels, axis), config, key),
            variables,
            progress=progress,
        )


def pretraining_cases(store: Store, fold: int) -> list[str]:
    """The split's training cases and the unlabelled ones, of people no result is measured on.

    Raises:
        InputError: there are none.
    """
    cases, left_out = pretraining_pool(store.manifest["cases"], store.split(fold))
    if not cases:
        wrong = "no case to pre-train on"
        if left_out:
            wrong += f": {listed(left_out)} of the subjects of validation or test cases"
        raise InputError(store.path, wrong, "at least one", "add scans")
    return cases


def restoration_objective(network: Network, config: Config, key: Key[Array, ""]) -> Objective:
    """Mean squared error of the restored voxels, over the masked ones of the global batch."""

    def objective(
        params: Any, batch_stats: Any, batch: Any, reduce: Reduce
    ) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
        image = augment(batch["image"], keys, config.photometry)
        mask_keys = jax.vmap(lambda key: jax.random.fold_in(key, MASK_DRAW))(keys)
        masked = block_masks(mask_keys, image.shape[1:-1], config.pretrain)[..., None]
        variables = {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}
        restored, updated = network.apply(
            variables,
            jnp.where(masked, 0.0, image),  # zero is the mean of a normalised scan
            train=True,
            sample_keys=jax.vmap(lambda key: jax.random.fold_in(key, DROPOUT_DRAW))(keys),
            mutable=["batch_stats"],
        )
        squares, voxels = reduce(
            (
                jnp.sum(jnp.where(masked, restored[0] - image, 0.0) ** 2),
                jnp.sum(masked) * image.shape[-1],
            )
        )
        loss = squares / jnp.maximum(voxels, 1)
        return loss, (updated.get("batch_stats", {}), {"restoration_error": loss})

    return objective


def block_masks(
    keys: Key[Array, " B"], spatial: tuple[int, ...], config: PretrainConfig
) -> Bool[Array, "B *spatial"]:
    """Draw for each sample which blocks of its patch are hidden (True)."""
    blocks = tuple(-(-size // config.block) for size in spatial)
    hidden = jax.vmap(lambda key: jax.random.bernoulli(key, config.masked, blocks))(keys)
    for axis in range(1, hidden.ndim):
        hidden = jnp.repeat(hidden, config.block, axis=axis)
    return hidden[(slice(None), *(slice(0, size) for size in spatial))]
