"""``penn train``: a supervised run, from a prepared store to a checkpointed network.

The composition of the parts; each is in its own folder. The loop reads top to bottom.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from penn_jax import run as run_directory
from penn_jax.config import Config
from penn_jax.data.loader import stream
from penn_jax.data.store import Store
from penn_jax.model.augment import augment
from penn_jax.model.loss import LossSums, coarser_labels, loss_sums, loss_value
from penn_jax.model.network import Network, halo, initialise, total_stride
from penn_jax.optim.checkpoint import Checkpoints
from penn_jax.optim.parallel import compile_step
from penn_jax.optim.sgd import build_optimiser
from penn_jax.optim.step import (
    Objective,
    Reduce,
    TrainState,
    build_step,
    create_state,
    prediction_variables,
)
from penn_jax.predict.dense import Forward, Tiling, predict_frames
from penn_jax.progress import bar
from penn_jax.report import metrics as scores
from penn_jax.types import InputError

_IN_FLIGHT = 2
"""Steps handed to the devices before the loop waits for the oldest: keeps them busy, no more."""


class DivergedError(Exception):
    """Too many steps in a row had a gradient that is not finite."""


def train(
    config: Config,
    data: Path,
    out: Path,
    resume: bool = False,
    fold: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a network on the ``train`` cases of a prepared store, validate it on the others.

    Args:
        config: of the run.
        data: folder of the prepared store.
        out: run directory.
        resume: go on from the latest checkpoint of ``out``.
        fold: number of the split in the store's manifest.
        progress: show a progress line where stderr is a terminal.

    Returns:
        The last validation: ``dice`` and what else ``metrics.jsonl`` shows of it.

    Raises:
        InputError: config and data do not fit, or ``out`` holds something else.
        DivergedError: too many gradients in a row were not finite.
    """
    # ---- data ----------------------------------------------------------------------------------
    store = Store(data)
    card = model_card(store, config)
    training, validation = split_cases(store, fold)
    check_fit(config, store)
    run_directory.create(out, config, card, resume)

    # ---- network, optimiser, step --------------------------------------------------------------
    classes, channels = len(card["labels"]), network_channels(card, config)
    optimiser = build_optimiser(config.optim)
    key = jax.random.key(config.train.seed)
    compiled = compile_step(
        lambda axis: build_step(
            segmentation_objective(Network(config.model, classes, axis), config, key),
            optimiser,
            config.optim.average,
            axis,
        ),
        config.train.parallel,
    )
    variables = initialise(Network(config.model, classes), key, channels, card["dimensions"])
    state = create_state(variables["params"], variables.get("batch_stats", {}), optimiser)

    # ---- where a resumed run left off ----------------------------------------------------------
    checkpoints = Checkpoints(out / "checkpoints")
    step, seconds = 0, 0.0
    if resume and (latest := checkpoints.latest()) is not None:
        account = checkpoints.restore_account(latest)
        state = checkpoints.restore_state(latest, state)
        step, seconds = latest, account["seconds"]
    state = compiled.spread(state)
    log = run_directory.Log(out, step)
    batches = stream(
        store, training, config.patches, config.train.batch_size, config.train.seed, step
    )
    places = hashlib.sha256()
    pending: deque[Mapping[str, jax.Array]] = deque()
    last: dict[str, Any] = {}
    paused = 0.0
    waited = 0.0

    # ---- the loop ------------------------------------------------------------------------------
    begun = time.perf_counter() - seconds
    with bar(f"training {config.name}", progress) as shown:
        while (used := budget_used(config, step, seconds)) < 1.0:
            asked = time.perf_counter()
            batch = dict(next(batches))
            waited += time.perf_counter() - asked
            places.update(batch.pop("place").tobytes())
            state, metrics = compiled.step(state, compiled.place(batch), np.float32(used))
            step += 1
            pending.append(metrics)
            if len(pending) > _IN_FLIGHT:
                jax.block_until_ready(pending.popleft())
            seconds = time.perf_counter() - begun - paused
            done = budget_used(config, step, seconds) >= 1.0

            if step % config.train.log_every == 0 or done:
                point = {key: float(value) for key, value in compiled.gather(metrics).items()}
                if point["skipped_in_a_row"] >= config.optim.most_skipped:
                    raise DivergedError(
                        f"{out}: {int(point['skipped_in_a_row'])} steps in a row up to step {step} "
                        f"had a gradient that is not finite; lower --optim.learning-rate"
                    )
                seconds = time.perf_counter() - begun - paused
                rate = step * config.train.batch_size / seconds
                log.write(
                    {
                        "step": step,
                        "seconds": round(seconds, 3),
                        "patches": step * config.train.batch_size,
                        "waiting": round(waited / seconds, 5),
                        "places": places.hexdigest()[:16],
                        **point,
                    }
                )
                shown.update(used, f"{rate:.0f} patches/s  loss {point['loss']:.3f}")

            # -- validation and checkpoints: not counted as training time
            stopped = time.perf_counter()
            every = config.train.validate_every
            validated = bool(validation) and (done or (every > 0 and step % every == 0))
            if validated:
                host = compiled.gather(state)
                predicting = prediction_variables(host, config.optim.average)
                last = validate(store, validation, config, card, predicting)
                log.write({"step": step, "seconds": round(seconds, 3), **last})
                shown.update(used, f"validation Dice {last['dice']:.4f}")
            if done or validated or step % config.train.checkpoint_every == 0:
                host = compiled.gather(state)
                checkpoints.save(
                    step,
                    prediction_variables(host, config.optim.average),
                    host,
                    {"seconds": seconds, "paused": paused, "places": places.hexdigest()},
                    last.get("dice") if validated else None,
                )
            paused += time.perf_counter() - stopped

    batches.close()  # type: ignore[attr-defined]
    log.close()
    checkpoints.close()
    return {"step": step, "seconds": seconds, "paused": paused, **last}


# ---- pieces ------------------------------------------------------------------------------------


def budget_used(config: Config, step: int, seconds: float) -> float:
    """Share of the budget used: of the steps, of the seconds, or of whichever is further."""
    shares = [0.0]
    if config.train.max_steps:
        shares.append(step / config.train.max_steps)
    if config.train.max_seconds:
        shares.append(seconds / config.train.max_seconds)
    return min(max(shares), 1.0)


def model_card(store: Store, config: Config) -> dict[str, Any]:
    """What prediction must know of the data: it goes into ``environment.json``."""
    manifest = store.manifest
    return {
        "channels": manifest["channels"],
        "labels": manifest["labels"],
        "dimensions": manifest["dimensions"],
        "spacing": manifest["spacing"],
        "data_hash": manifest["data_hash"],
    }


def network_channels(card: Mapping[str, Any], config: Config) -> int:
    """Input channels of the network: the scan's, for the slice and each of its neighbours."""
    return len(card["channels"]) * (2 * config.patches.neighbours + 1)


def split_cases(store: Store, fold: int) -> tuple[list[str], list[str]]:
    """Labelled training and validation cases of one split.

    Raises:
        InputError: there is no such split, or it has no labelled training case.
    """
    splits = store.manifest["splits"]
    if not 0 <= fold < len(splits):
        raise InputError(store.path, f"has {len(splits)} splits", f"split {fold}", "choose another")
    cases = store.manifest["cases"]
    training, validation = (
        [name for name in splits[fold][part] if cases[name]["labelled"]]
        for part in ("train", "validation")
    )
    if not training:
        raise InputError(store.path, "no labelled training case", "at least one", "add labels")
    return training, validation


def check_fit(config: Config, store: Store) -> None:
    """Check that config and data belong together.

    Raises:
        InputError: the patch's axes, its size or the batch do not fit.
    """
    dimensions = store.manifest["dimensions"]
    size, stride = config.patches.size, total_stride(config.model)
    if len(size) != dimensions:
        raise InputError(
            "--patches.size",
            f"{len(size)} axes",
            f"{dimensions}, as the store {store.path} has",
            "give one size an axis, or prepare with --dimensions",
        )
    if any(part % stride for part in size):
        raise InputError(
            "--patches.size", f"{size}", f"multiples of {stride}", "round up, or use fewer stages"
        )
    if dimensions == 3 and config.patches.neighbours:
        raise InputError("--patches.neighbours", "set for a 3-D store", "0", "leave it out")
    if not config.train.max_steps and not config.train.max_seconds:
        raise InputError("--train.max-steps", "0 without --train.max-seconds", "a budget", "set one")
    if config.train.batch_size % jax.device_count():
        raise InputError(
            "--train.batch-size",
            f"{config.train.batch_size}",
            f"a multiple of the {jax.device_count()} devices",
            "change it",
        )


def segmentation_objective(network: Network, config: Config, key: jax.Array) -> Objective:
    """The supervised loss of a batch, photometric augmentation included."""

    def objective(
        params: Any, batch_stats: Any, batch: Any, reduce: Reduce
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        # Every random choice is keyed by the sample's global number, not by where it runs.
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
        image = augment(batch["image"], keys, config.photometry)
        variables = {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}
        logits, updated = network.apply(
            variables, image, train=True, sample_keys=keys, mutable=["batch_stats"]
        )
        sums = [
            reduce(loss_sums(scale, coarser_labels(batch["label"], scale.shape[1:-1])))
            for scale in logits
        ]
        weights = [0.5**i for i in range(len(sums))]
        losses = [loss_value(scale, config.loss) for scale in sums]
        loss = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
        return loss, (updated.get("batch_stats", {}), training_metrics(sums[0]))

    return objective


def training_metrics(sums: LossSums) -> dict[str, jax.Array]:
    """Cross-entropy and soft Dice of the augmented batch, for the log."""
    dice = 2.0 * sums.overlap[1:] / jnp.maximum(sums.predicted[1:] + sums.reference[1:], 1.0)
    return {
        "cross_entropy": sums.cross_entropy / jnp.maximum(sums.voxels, 1.0),
        "soft_dice": jnp.mean(dice),
    }


def tiling(config: Config) -> Tiling:
    """How whole frames are predicted with this network."""
    return Tiling(
        stride=total_stride(config.model),
        halo=halo(config.model),
        neighbours=config.patches.neighbours,
        batch_size=config.predict.batch_size,
    )


def label_forward(config: Config, classes: int, variables: Mapping[str, Any]) -> Forward:
    """The network as a compiled function from tiles to labels (uint8)."""
    network = Network(config.model, classes)

    @jax.jit
    def forward(variables: Any, tiles: jax.Array) -> jax.Array:
        return jnp.argmax(network.apply(variables, tiles)[0], axis=-1).astype(jnp.uint8)

    return lambda tiles: np.asarray(forward(variables, tiles))


def validate(
    store: Store,
    cases: Sequence[str],
    config: Config,
    card: Mapping[str, Any],
    variables: Mapping[str, Any],
) -> dict[str, float]:
    """Predict whole validation cases and compare them with their labels, on the prepared grid.

    Returns:
        ``dice`` (mean over cases), the six pooled metrics as ``pooled_…``, all finite.
    """
    classes = [label for label in card["labels"].values() if label > 0]
    forward = label_forward(config, len(card["labels"]), variables)
    counts = []
    for case in cases:
        box = tuple(slice(0, size) for size in store.frames_shape(case)[:-1])
        predicted = predict_frames(forward, store.image(case, box), tiling(config))
        counts.append(scores.confusion(predicted, store.labels(case, box), classes))
    each = np.array([scores.case_metrics(count)["dice"] for count in counts])
    pooled = scores.pooled_metrics(scores.total(counts))
    mean = scores.mean_over_cases(each)["value"]
    values = {"dice": mean, **{f"pooled_{name}": value for name, value in pooled.items()}}
    return {name: float(value) for name, value in values.items() if value is not None}
