"""``penn report``: one HTML page of what a run gives on its validation cases."""

from __future__ import annotations

import itertools
import math
import shlex
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from penn_jax.config import PrepareConfig, json_text, to_json
from penn_jax.data.remote import Place, Remote
from penn_jax.data.store import Store
from penn_jax.engine import Model, ensemble, load_models
from penn_jax.predict.case import most_likely
from penn_jax.predict.dense import predict_blocks
from penn_jax.progress import bar, warn
from penn_jax.remote_run import at_hand, written
from penn_jax.report.calibration import NOTHING, Reliability, reliability
from penn_jax.report.failures import Traits, limits, measure_traits
from penn_jax.report.figures import read_log
from penn_jax.report.html import write_page
from penn_jax.report.metrics import Confusion, confusion
from penn_jax.report.run_page import Cases, Origin, run_page, telling_cases
from penn_jax.report.run_tables import RunResult
from penn_jax.report.slices import Views, views
from penn_jax.report.tables import machine
from penn_jax.run import read_json
from penn_jax.task import model_card
from penn_jax.types import IGNORE_LABEL, InputError

_MARGIN = 8
"""Voxels around the reference in each frame within which calibration is told by itself."""
_MOST_TRAINING = 100
"""Training cases that are measured to tell what is usual."""

Tell = Callable[[str], None]


class _Predicted(NamedTuple):
    """One case as one run predicts it."""

    mask: bytes
    """Compressed: masks of all cases are kept until it is known which are shown."""
    counts: Confusion
    merged: Confusion
    everywhere: Reliability
    near: Reliability


def report(
    run: Place,
    data: Place | str,
    baseline: Place | None = None,
    out: Place | None = None,
    progress: bool = True,
) -> Place:
    """Predict the validation cases of a run and write its page.

    Args:
        run: a run of ``penn train``.
        data: the prepared store that it was trained on.
        baseline: another run on the same data and split, to compare with.
        out: the page; ``report.html`` in the run directory where it is None.
        progress: show a progress line where stderr is a terminal.

    Returns:
        The page.

    Raises:
        InputError: a run cannot be used, or was trained on other data or another split.
        OSError: the page cannot be written.
    """
    models = load_models([run] if baseline is None else [run, baseline])
    out = run / "report.html" if out is None else out
    if isinstance(out, Path) and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(out, "cannot be a page", "a file in a folder that exists", "set --out")
    store = Store(data)
    for model in models:
        _check_data(model, store)
    split = store.split(models[0].card["fold"])
    training, validation = (
        [name for name in names if store.manifest["cases"][name]["labelled"]]
        for names in (split["train"], split["validation"])
    )
    if not validation:
        raise InputError(store.path, "no labelled validation case", "at least one", "add labels")
    measured = _spread(training, _MOST_TRAINING)
    steps, done = len(measured) + (1 + len(models)) * len(validation), itertools.count()
    with bar("reporting", progress) as shown:

        def tell(case: str) -> None:
            shown.update(next(done) / steps, case)

        usual = limits([_traits(store, case, tell) for case in measured])
        traits = {case: _traits(store, case, tell) for case in validation}
        predicted = [_predict(model, store, validation, tell) for model in models]
    results = [
        _gather(name, model, cases)
        for name, model, cases in zip(_names(models), models, predicted, strict=True)
    ]
    pictures = {
        title: _views(store, case, predicted[0][case].mask)
        for title, case in telling_cases(results[0]).items()
    }
    page = run_page(
        results[0],
        results[1] if len(results) > 1 else None,
        models[0].card["labels"],
        Cases(traits, usual, pictures),
        Origin(
            _facts(models[0], len(training), len(validation)),
            _commands(models[0], data, baseline, store.manifest["config"]),
            json_text(to_json(models[0].config)).strip(),
            store.manifest["findings"],
        ),
    )
    with written(out) as path:
        write_page(path, page)
    return out


def try_report(run: Place, data: Place | str) -> Place | None:
    """The page of a run that has just ended; what goes wrong is a warning, for the run is whole."""
    try:
        return report(run, data)
    except Exception as error:  # whatever it is, the run must not fail for its page
        warn(f"{run}: no report was written ({type(error).__name__}: {error})")
        return None


def _check_data(model: Model, store: Store) -> None:
    """Validation cases of other data or another split may be what the network was trained on."""
    fold = model.card["fold"]
    if fold < len(store.manifest["splits"]):
        here = model_card(store, fold, "segmentation")
        names = ("data_hash", "split_hash", "channels", "labels", "dimensions", "spacing")
        differing = [name for name in names if here[name] != model.card[name]]
    else:
        differing = ["fold"]
    if differing:
        raise InputError(
            store.path,
            f"its {differing[0]} is not that of {model.path}",
            "the store that the run was trained on",
            "give that store with --data",
        )


# ---- cases -------------------------------------------------------------------------------------


def _predict(model: Model, store: Store, cases: Sequence[str], tell: Tell) -> dict[str, _Predicted]:
    forward, plan = ensemble([model], model.config.predict)
    classes = [label for label in model.card["labels"].values() if label > 0]
    predicted = {}
    for case in cases:
        tell(case)
        reference = store.labels(case, _whole(store, case))
        near = _around(reference)
        mask = np.empty(reference.shape, np.uint8)
        everywhere, inside = NOTHING, NOTHING
        for block in predict_blocks(forward, store.image(case, _whole(store, case)), plan):
            where = (block.frame, *block.box)
            mask[where] = most_likely(block.values)
            everywhere += reliability(block.values, reference[where])
            inside += reliability(block.values, reference[where], near[where])
        predicted[case] = _Predicted(
            zlib.compress(mask.tobytes(), 1),
            confusion(mask, reference, classes),
            confusion(_merged(mask), _merged(reference), [1]),
            everywhere,
            inside,
        )
    return predicted


def _names(models: Sequence[Model]) -> list[str]:
    """The folders' own names where these tell them apart."""
    paths = [model.path for model in models]
    short = [path.name if isinstance(path, Remote) else path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(model.path) for model in models]


def _gather(name: str, model: Model, predicted: Mapping[str, _Predicted]) -> RunResult:
    return RunResult(
        name,
        _log(model),
        {case: one.counts for case, one in predicted.items()},
        {case: one.merged for case, one in predicted.items()},
        sum((one.everywhere for one in predicted.values()), NOTHING),
        sum((one.near for one in predicted.values()), NOTHING),
    )


def _log(model: Model) -> list[dict[str, Any]]:
    with at_hand(model.path / "metrics.jsonl") as path:
        return read_log(path)


def _merged(labels: UInt8[np.ndarray, "F *spatial"]) -> UInt8[np.ndarray, "F *spatial"]:
    return np.where(labels == IGNORE_LABEL, labels, np.minimum(labels, 1))


def _around(reference: UInt8[np.ndarray, "F *spatial"]) -> Bool[np.ndarray, "F *spatial"]:
    """The box around the foreground, a margin wider within frames; nothing where there is none."""
    foreground = (reference > 0) & (reference != IGNORE_LABEL)
    box = np.zeros(reference.shape, bool)
    where = np.nonzero(foreground)
    if len(where[0]):
        margins = (0, *[_MARGIN] * (reference.ndim - 1))
        box[
            tuple(
                slice(max(0, index.min() - margin), index.max() + 1 + margin)
                for index, margin in zip(where, margins, strict=True)
            )
        ] = True
    return box


def _traits(store: Store, case: str, tell: Tell) -> Traits:
    tell(case)
    between, spacing = _spacing(store, case)
    return measure_traits(
        store.image(case, _whole(store, case)),
        store.labels(case, _whole(store, case)),
        between * math.prod(spacing),
    )


def _spacing(store: Store, case: str) -> tuple[float, tuple[float, ...]]:
    """mm between the frames of a case (1 where there is one frame), and within them."""
    record = store.manifest["cases"][case]
    axis, native = record["slice_axis"], record["native_spacing"]
    between = 1.0 if axis is None else native[axis]
    # The axes of a frame are in the order R, A, S, whatever that of the file.
    order = sorted(range(3), key=lambda a: "RLAPSI".index(record["orientation"][a]) // 2)
    spacing = store.manifest["spacing"] or [native[a] for a in order if a != axis]
    return between, tuple(spacing)


def _whole(store: Store, case: str) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in store.frames_shape(case)[:-1])


def _views(store: Store, case: str, packed: bytes) -> Views:
    reference = store.labels(case, _whole(store, case))
    mask = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(reference.shape)
    image = store.image(case, _whole(store, case))[..., 0]
    return views(case, image, reference, mask, _spacing(store, case)[1])


def _spread(names: Sequence[str], most: int) -> list[str]:
    """So many of the names, evenly spread, all where they are fewer."""
    if len(names) <= most:
        return list(names)
    return [names[int(i)] for i in np.linspace(0, len(names) - 1, most)]


# ---- where the run comes from ------------------------------------------------------------------


def _facts(model: Model, training: int, validation: int) -> dict[str, str]:
    card = model.card
    spacing = " × ".join(f"{mm:.4g}" for mm in card["spacing"] or ())
    last = next((p for p in reversed(_log(model)) if "seconds" in p), {})
    return {
        "Data": f"{card['data_hash']}, split {card['split_hash']} (fold {card['fold']})",
        "Cases": f"{training} labelled to train, {validation} to validate",
        "Classes": ", ".join(card["labels"]),
        "Channels": ", ".join(card["channels"]),
        "Spacing": "the scans' own" if card["spacing"] is None else f"{spacing} mm",
        "Training": f"{last.get('step', 0)} steps, {last.get('seconds', 0):.0f} s",
        "Started from": card.get("init") or "random weights",
        **machine(read_json(model.path / "environment.json")),
    }


def _commands(
    model: Model, data: Place | str, baseline: Place | None, preparation: Mapping[str, Any]
) -> list[str]:
    run, store, again = (shlex.quote(str(x)) for x in (model.path, data, f"{model.path}-again"))
    train = f"penn train {run}/config.json --data {store} --out {again}"
    if fold := model.card["fold"]:
        train += f" --fold {fold}"
    if init := model.card.get("init"):
        train += f" --init {shlex.quote(init)}"
    page = f"penn report {run} --data {store}"
    if baseline is not None:
        page += f" --baseline {shlex.quote(str(baseline))}"
    return [f"penn prepare RAW {store}{_prepare_options(preparation)}", train, page]


def _prepare_options(config: Mapping[str, Any]) -> str:
    """The options of ``penn prepare`` that are not the defaults."""
    usual = to_json(PrepareConfig())
    options = ""
    for name, value in config.items():
        if value == usual[name]:
            continue
        options += f" --{name.replace('_', '-')}"
        if not isinstance(value, bool):
            values = value if isinstance(value, list) else [value]
            options += "".join(f" {item}" for item in values)
    return options
