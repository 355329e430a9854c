"""Checkpoints of a run: the training state, the model that predicts, and the run's account.

The only module that uses Orbax. Each step holds three items: ``model`` (averaged weights and batch
statistics, all that prediction and export need), ``state`` (everything the next step needs) and
``account`` (JSON: seconds trained, best score, hashes).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from penn_jax.types import InputError

SCORE = "dice"
_NO_SCORE = -1.0


class Checkpoints:
    """The checkpoints of one run directory: the latest two and the best one are kept.

    Args:
        folder: ``<run>/checkpoints``; made where it is missing, unless ``read_only``.
        read_only: for prediction; nothing is created or deleted.
    """

    def __init__(self, folder: Path, read_only: bool = False):
        self._folder = folder.resolve()  # Orbax fails in the background on a relative path
        if read_only and not self._folder.is_dir():
            raise InputError(folder, "no checkpoints", "a run of penn train", "train first")
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                read_only=read_only,
                best_fn=lambda metrics: metrics[SCORE],
                best_mode="max",
                preservation_policy=AnyPreservationPolicy(
                    [LatestN(2), BestN(get_metric_fn=lambda metrics: metrics[SCORE], n=1)]
                ),
            ),
        )

    def save(
        self, step: int, model: Any, state: Any, account: dict[str, Any], score: float | None
    ) -> None:
        """Write a checkpoint in the background; ``score`` (higher is better) ranks it."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(model),
                state=ocp.args.StandardSave(state),
                account=ocp.args.JsonSave({"run": account, "shapes": _shapes(state)}),
            ),
            metrics={SCORE: _NO_SCORE if score is None else score},
        )

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the highest score, or the newest where none was scored."""
        return self._manager.best_step() or self.latest()

    def restore_model(self, step: int) -> dict[str, Any]:
        """The variables that predict, as a tree of dictionaries of arrays."""
        return self._restore(step, "model", ocp.args.StandardRestore())

    def restore_state(self, step: int, like: Any) -> Any:
        """The training state, shaped like ``like``.

        Raises:
            InputError: the step is damaged, or of another network: the first array that differs
                is named with both shapes.
        """
        stored, wanted = self._account(step)["shapes"], _shapes(like)
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise InputError(
                    self._folder / str(step),
                    f"{name} is {_said(stored.get(name))}",
                    _said(wanted.get(name)),
                    "use the config that wrote it, or another run directory",
                )
        return self._restore(step, "state", ocp.args.StandardRestore(_abstract(like)))

    def restore_account(self, step: int) -> dict[str, Any]:
        """The run's account at that step."""
        return self._account(step)["run"]

    def _account(self, step: int) -> dict[str, Any]:
        return self._restore(step, "account", ocp.args.JsonRestore())

    def _restore(self, step: int, item: str, args: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
        except Exception as error:  # Orbax raises bare exceptions for damaged or foreign steps
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                self._folder / str(step) / item,
                f"cannot be restored ({reason[:200]})",
                "a whole checkpoint of this network",
                "use another checkpoint, or the config that wrote this one",
            ) from error

    def close(self) -> None:
        """Wait for writes under way and end the manager's threads."""
        self._manager.wait_until_finished()
        self._manager.close()


def _shapes(tree: Any) -> dict[str, list[int]]:
    return {
        jax.tree_util.keystr(path): list(jax.numpy.shape(leaf))
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _said(shape: list[int] | None) -> str:
    return "missing" if shape is None else f"of shape {tuple(shape)}"


def _abstract(tree: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jax.numpy.shape(x), x.dtype, sharding=sharding), tree
    )
