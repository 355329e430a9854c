"""``penn train``: a supervised run, from a prepared store to a checkpointed network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from penn_jax.config import Config, TrainConfig
from penn_jax.data.remote import Place
from penn_jax.data.store import Store
from penn_jax.engine import bucketed
from penn_jax.loop import Validate, fit
from penn_jax.model.augment import augment
from penn_jax.model.loss import LossSums, coarser_labels, loss_sums, loss_value
from penn_jax.model.network import Network, initialise
from penn_jax.optim.checkpoint import saved_steps
from penn_jax.optim.step import Objective, Reduce
from penn_jax.predict.case import most_likely
from penn_jax.predict.dense import predict_frames, tile_grid
from penn_jax.progress import say
from penn_jax.report import metrics as scores
from penn_jax.run import (
    ModelCard,
    network_channels,
    output_channels,
)
from penn_jax.task import DROPOUT_DRAW, check_fit, model_card, pretraining_cases, tiling
from penn_jax.teach import Teach, load_teacher
from penn_jax.together import at_work_by_all, gathered, is_primary, opened_by_all, share
from penn_jax.transfer import load_parts, loaded_parts
from penn_jax.types import InputError


def train(
    config: Config,
    data: Place | str | Store,
    out: Place,
    init: Place | None = None,
    resume: bool = False,
    fold: int = 0,
    progress: bool = True,
    teacher: Place | None = None,
) -> dict[str, Any]:
    """Train a network on the ``train`` cases of a prepared store, validate it on the others.

    Args:
        config: of the run.
        data: the prepared store, or its folder.
        out: run directory.
        init: a run of ``penn pretrain`` (or ``train``) whose weights, all but the head, start this.
        resume: go on from the latest checkpoint of ``out``.
        fold: number of the split in the store's manifest.
        progress: show a progress line where stderr is a terminal.
        teacher: a run whose predictions stand for all labels; the unlabelled cases are then trained
            on too, and no label counts but in validation.

    Returns:
        ``step``, ``seconds``, ``paused``, and of the last validation ``dice`` (mean over cases)
        and the six pooled metrics.

    Raises:
        InputError: config, data or ``init`` do not fit, or ``out`` holds something else.
        DivergedError: too many gradients in a row were not finite.
        StoppedError: SIGTERM or Ctrl-C came; all is saved.
    """
    store = data if isinstance(data, Store) else Store(data)
    check_fit(config, store)
    training, validation = labelled_cases(store, fold)
    training = labelled_subset(training, config.train)
    card = model_card(store, fold, "segmentation", init)
    teach = None
    if teacher is not None:
        teach, card["teacher"] = load_teacher(teacher, config, card), str(teacher)
        training = pretraining_cases(store, fold)
        # Where the foreground is would be a label.
        config = replace(config, patches=replace(config.patches, foreground_fraction=0.0))
    classes = output_channels(card, config)
    key = jax.random.key(config.train.seed)
    network = Network(config.model, classes)
    variables = initialise(network, key, network_channels(card, config), card["dimensions"])
    with at_work_by_all(out, resume) as work:
        pretrained = None
        if init is not None:
            pretrained = loaded_parts(variables["params"], config.train.initialise)
            if not saved_steps(work.folder / "checkpoints"):
                variables, loaded = load_parts(init, variables, config.train.initialise, card)
                say(loaded, progress and is_primary())
        with opened_by_all(work.folder, config, card, resume, work.is_copy):
            return fit(
                config,
                work.folder,
                store,
                training,
                objective_builder(config, classes, key, teach),
                variables,
                validator(store, validation, config, card) if validation else None,
                pretrained,
                progress,
                work.publish,
            )


def labelled_cases(store: Store, fold: int) -> tuple[list[str], list[str]]:
    """Labelled training and validation cases of one split.

    Raises:
        InputError: there is no such split, or it has no labelled training case.
    """
    split, cases = store.split(fold), store.manifest["cases"]
    training, validation = (
        [name for name in split[part] if cases[name]["labelled"]]
        for part in ("train", "validation")
    )
    if not training:
        raise InputError(store.path, "no labelled training case", "at least one", "add labels")
    return training, validation


def labelled_subset(cases: Sequence[str], course: TrainConfig) -> list[str]:
    """The ``course.labelled`` cases that a run is allowed, all where that is 0.

    Drawn by the seed from the names alone, so that fewer are always a part of more.

    Raises:
        InputError: there are not that many.
    """
    if course.labelled > len(cases):
        raise InputError(
            "--train.labelled",
            f"{course.labelled}",
            f"at most the {len(cases)} labelled training cases",
            "lower it, or leave it out to use all",
        )

    def draw(name: str) -> bytes:
        return hashlib.sha256(f"{course.seed} {name}".encode()).digest()

    chosen = set(sorted(cases, key=draw)[: course.labelled or len(cases)])
    return [name for name in cases if name in chosen]


def objective_builder(
    config: Config, classes: int, key: jax.Array, teach: Teach | None = None
) -> Callable[[str | None], Objective]:
    """What is minimised, for whichever ``pmap`` axis it runs in; None under ``jit``."""
    return lambda axis: segmentation_objective(
        Network(config.model, classes, axis), config, key, teach
    )


def segmentation_objective(
    network: Network, config: Config, key: jax.Array, teach: Teach | None = None
) -> Objective:
    """The supervised loss of a batch, photometric augmentation included.

    With ``teach``, its labels of the batch as it was cut stand for those that came with it.
    """

    def objective(
        params: Any, batch_stats: Any, batch: Any, reduce: Reduce
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        # Every random choice is keyed by the sample's global number, not by where it runs.
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])
        labels = batch["label"] if teach is None else teach(batch["image"])
        image = augment(batch["image"], keys, config.photometry)
        variables = {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}
        logits, updated = network.apply(
            variables,
            image,
            train=True,
            sample_keys=jax.vmap(lambda key: jax.random.fold_in(key, DROPOUT_DRAW))(keys),
            mutable=["batch_stats"],
        )
        sums = [
            reduce(loss_sums(scale, coarser_labels(labels, scale.shape[1:-1]))) for scale in logits
        ]
        weights = jnp.array([0.5**i for i in range(len(sums))], jnp.float32)
        losses = jnp.stack([loss_value(scale, config.loss) for scale in sums])
        loss = jnp.sum(weights * losses) / jnp.sum(weights)
        return loss, (updated.get("batch_stats", {}), training_metrics(sums[0]))

    return objective


def training_metrics(sums: LossSums) -> dict[str, jax.Array]:
    """Cross-entropy and soft Dice of the augmented batch, for the log."""
    dice = 2.0 * sums.overlap[1:] / jnp.maximum(sums.predicted[1:] + sums.reference[1:], 1.0)
    return {
        "cross_entropy": sums.cross_entropy / jnp.maximum(sums.voxels, 1.0),
        "soft_dice": jnp.mean(dice),
    }


def validator(store: Store, cases: Sequence[str], config: Config, card: ModelCard) -> Validate:
    """Predicts whole validation cases and compares them with their labels, on the prepared grid.

    Returns:
        From variables to ``dice`` (mean over cases) and the six pooled metrics as ``pooled_…``;
        undefined ones are left out.

    Raises:
        InputError: the memory budget is too small for a case.
    """
    count_all = case_counts(store, cases, config, card)

    def validate(variables: Mapping[str, Any]) -> dict[str, float]:
        counts = list(count_all(variables).values())
        each = np.array([scores.case_metrics(count)["dice"] for count in counts])
        pooled = scores.pooled_metrics(scores.total(counts))
        mean = scores.mean_over_cases(each)["value"]
        values = {"dice": mean, **{f"pooled_{name}": value for name, value in pooled.items()}}
        return {k: float(v) for k, v in values.items() if v is not None and np.isfinite(v)}

    return validate


def case_counts(
    store: Store, cases: Sequence[str], config: Config, card: ModelCard
) -> Callable[[Mapping[str, Any]], dict[str, scores.Confusion]]:
    """Predicts whole cases and counts right and wrong voxels, on the prepared grid.

    Several processes share the cases; counts are whole numbers, and each gets those of all.

    Returns:
        From variables to the counts of each case, one for each foreground class.

    Raises:
        InputError: the memory budget is too small for a case.
    """
    plan, evaluate = tiling(config, card), bucketed(config.model, len(card["labels"]))
    classes = [label for label in card["labels"].values() if label > 0]
    for case in cases:  # a budget that is too small must not come to light after hours of training
        tile_grid(store.frames_shape(case)[1:-1], plan)

    def count(case: str, variables: Mapping[str, Any]) -> scores.Confusion:
        box = tuple(slice(0, size) for size in store.frames_shape(case)[:-1])
        predicted = predict_frames(
            lambda tiles: most_likely(evaluate(variables, tiles)), store.image(case, box), plan
        )
        return scores.confusion(predicted, store.labels(case, box), classes)

    def count_all(variables: Mapping[str, Any]) -> dict[str, scores.Confusion]:
        counts = np.zeros((len(cases), 4, len(classes)), np.int64)
        for number in share(len(cases)):
            counts[number] = count(cases[number], variables).array()
        everyone = gathered(counts).sum(axis=0)
        return {case: scores.Confusion(*part) for case, part in zip(cases, everyone, strict=True)}

    return count_all
