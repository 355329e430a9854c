"""The training loop, for any objective: budget, log, validation, checkpoints, resume."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from penn_jax.config import Config, TrainConfig
from penn_jax.data.loader import stream
from penn_jax.data.store import Store
from penn_jax.log import Log, Silence
from penn_jax.optim.checkpoint import Checkpoints
from penn_jax.optim.parallel import compile_step
from penn_jax.optim.sgd import build_optimiser
from penn_jax.optim.step import Objective, build_step, create_state, prediction_variables
from penn_jax.progress import bar, warn
from penn_jax.signals import stop_signals
from penn_jax.together import Agreement, is_primary, primary_first, summed, wait_for_all
from penn_jax.types import Batch, DivergedError, StoppedError

_IN_FLIGHT = 2
"""Steps handed to the devices before the loop waits for the oldest: while they are busy with these,
the next batch is cut and sent to them."""

SCORE = "dice"
"""The validation value that ranks checkpoints."""

Validate = Callable[[Mapping[str, Any]], Mapping[str, float]]
"""From the variables that predict to named scores; the one called ``dice`` ranks checkpoints."""


def fit(
    config: Config,
    out: Path,
    store: Store,
    cases: Sequence[str],
    build_objective: Callable[[str | None], Objective],
    variables: Mapping[str, Any],
    validate: Validate | None = None,
    pretrained: Any = None,
    progress: bool = True,
    publish: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Minimise an objective over patches of the given cases until the budget is used.

    Of several processes each calls this, and takes its share of every batch. All decide alike:
    they agree on the time and on signals. Process 0 writes.

    Args:
        config: of the run.
        out: the run directory, already made; the run goes on from its latest checkpoint.
        store: prepared cases.
        cases: those to draw patches from.
        build_objective: given the name of the ``pmap`` axis, or None under ``jit``.
        variables: the network's, before the first step.
        validate: scores the averaged weights; its time is not training time.
        pretrained: for each parameter whether it came from another run; None where none did.
        progress: show a progress line where stderr is a terminal.
        publish: called after each checkpoint.

    Returns:
        ``step``, ``seconds`` (training), ``paused`` (validation and checkpoints) and the last
        scores.

    Raises:
        DivergedError: too many gradients in a row were not finite.
        InputError: the checkpoint to resume from is of another network, or one cannot be written.
        StoppedError: SIGTERM or SIGINT came; the state after the last step is saved.
    """
    course = config.train
    optimiser = build_optimiser(config.optim, pretrained)
    compiled = compile_step(
        lambda axis: build_step(
            build_objective(axis), optimiser, config.optim.average, axis, course.accumulate
        ),
        course.parallel,
        parts=course.accumulate,
    )
    # Jitted: on an accelerator each operation of its own would be a compilation of its own.
    state = jax.jit(lambda v: create_state(v["params"], v.get("batch_stats", {}), optimiser))(
        variables
    )

    with contextlib.ExitStack() as until_the_end:
        # ---- where a resumed run left off ------------------------------------------------------
        with primary_first():  # it tidies up
            checkpoints = Checkpoints(out / "checkpoints", warn)
        step, seconds, waited, seen = 0, 0.0, 0.0, 0  # seen: see _without_places
        last: dict[str, float] = {}
        if (latest := checkpoints.latest()) is not None:
            state = checkpoints.restore_state(latest, state)
            account = checkpoints.restore_account(latest)
            step, seconds, waited = latest, account["seconds"], account["waited"]
            seen = int(account["places"] or "0", 16) if is_primary() else 0
            last = account["scores"]
        state = compiled.spread(state)
        log = until_the_end.enter_context(
            contextlib.closing(Log(out, step) if is_primary() else Silence())
        )
        batches = until_the_end.enter_context(
            contextlib.closing(
                stream(
                    store,
                    cases,
                    config.patches,
                    course.batch_size,
                    course.seed,
                    step,
                    jax.process_index(),
                    jax.process_count(),
                    course.workers,
                )
            )
        )
        shown = until_the_end.enter_context(bar(config.name, progress and is_primary()))
        stop = until_the_end.enter_context(stop_signals())

        # ---- the step, compiled before the clock starts ----------------------------------------
        used, compiling, run_step = budget_used(course, step, seconds), 0.0, compiled.step
        upcoming: Iterator[Batch] = iter(batches.__next__, None)
        if used < 1.0:
            first = next(upcoming)
            upcoming = itertools.chain([first], upcoming)
            began = time.perf_counter()
            run_step = compiled.ahead(state, compiled.place(_without_places(first)[0]))
            compiling = time.perf_counter() - began

        # ---- the loop --------------------------------------------------------------------------
        pending: deque[Mapping[str, jax.Array]] = deque()
        agree, places = Agreement(seconds), ""
        paused, pace = 0.0, ""
        begun, first_step, first_second = time.perf_counter() - seconds, step, seconds
        while used < 1.0:
            asked = time.perf_counter()
            batch, digest = _without_places(next(upcoming))
            waited += time.perf_counter() - asked
            seen += digest
            progress_made = budget_used(course, step + 0.5, seconds)  # the step's middle
            state, metrics = run_step(state, compiled.place(batch), np.float32(progress_made))
            step += 1
            pending.append(metrics)
            if len(pending) > _IN_FLIGHT:
                jax.block_until_ready(pending.popleft())
            seconds, signal = agree(time.perf_counter() - begun - paused, stop.signal)
            # Not after the wait below: the step that ends the loop must know that it is the last.
            used = budget_used(course, step, seconds)
            done = used >= 1.0
            scored = validate is not None and (done or _is_due(step, course.validate_every))
            saved = scored or done or signal or _is_due(step, course.checkpoint_every)
            logged = done or _is_due(step, course.log_every)
            if saved:
                jax.block_until_ready(state)  # steps under way are training time, not a pause
                seconds, signal = agree(time.perf_counter() - begun - paused, stop.signal, True)
            if saved or logged:
                places = f"{summed(seen):016x}"

            if logged:
                point = {name: float(value) for name, value in compiled.gather(metrics).items()}
                log.write(
                    {
                        "step": step,
                        "seconds": round(seconds, 3),
                        "patches": step * course.batch_size,
                        "places": places,
                        "waiting": waited,
                        "compiling": compiling,
                        **point,
                    }
                )
                _check_finite(point, config.optim.most_skipped, out, step)
                rate = (step - first_step) * course.batch_size / max(seconds - first_second, 1e-9)
                pace = f"{rate:.0f} patches/s  loss {point['loss']:.3f}"
                shown.update(used, _note(pace, last.get(SCORE)))

            pause = time.perf_counter()
            if saved:
                host = compiled.gather(state)
                model = prediction_variables(host, config.optim.average)
                score = None
                if scored and validate is not None:
                    last = dict(validate(model))
                    score = last.get(SCORE)
                    _, signal = agree(seconds, stop.signal, True)  # it may have come meanwhile
                    log.write({"step": step, "seconds": round(seconds, 3), **last})
                    shown.update(used, _note(pace, score))
                account = {"seconds": seconds, "waited": waited, "places": places, "scores": last}
                log.sync()
                if is_primary():  # every process has the whole state: one writes it
                    checkpoints.save(step, model, host, account, score)
                    publish()
                wait_for_all()
            if signal and not done:
                raise StoppedError(out, step, signal)
            paused += time.perf_counter() - pause

    return {"step": step, "seconds": seconds, "paused": paused, **last}


def budget_used(course: TrainConfig, step: float, seconds: float) -> float:
    """Share of the budget used: of the steps, of the seconds, or of whichever is further."""
    shares = [0.0]
    if course.max_steps:
        shares.append(step / course.max_steps)
    if course.max_seconds:
        shares.append(seconds / course.max_seconds)
    return min(max(shares), 1.0)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _note(pace: str, score: float | None) -> str:
    """What stands beside the bar: rate and loss of the last log point, the last Dice."""
    return pace if score is None else f"{pace}  validation Dice {score:.4f}".lstrip()


def _without_places(batch: Batch) -> tuple[dict[str, Any], int]:
    """What the step takes of a batch, and a number that stands for the places of its patches.

    The sum of such numbers depends neither on the order of samples nor on who had which: at a step
    it is equal only if every sample up to it was the same patch, none twice and none left out.
    """
    taken = {name: value for name, value in batch.items() if name != "place"}
    rows = zip(batch["index"], batch["place"], strict=True)
    digests = (
        hashlib.blake2b(index.tobytes() + place.tobytes(), digest_size=8) for index, place in rows
    )
    return taken, sum(int.from_bytes(digest.digest()) for digest in digests)


def _check_finite(point: Mapping[str, float], most: int, out: Path, step: int) -> None:
    in_a_row = int(point["skipped_in_a_row"])
    if in_a_row >= most:
        raise DivergedError(
            f"{out}: {in_a_row} steps in a row up to step {step} had a gradient that is not "
            f"finite; lower --optim.learning-rate"
        )
