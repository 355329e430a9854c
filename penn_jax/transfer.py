"""Starting a run from another run's weights: ``penn train --init RUN``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
from jaxtyping import PyTree

from penn_jax.data.remote import Place
from penn_jax.run import ModelCard, check_split, load_model
from penn_jax.types import InputError

Parts = Literal["encoder", "network"]

_ENCODER = ("reduce_", "conv_")


def load_parts(
    run: Place, fresh: Mapping[str, Any], parts: Parts, card: ModelCard
) -> tuple[dict[str, Any], str]:
    """Put another run's weights and batch statistics in place of newly drawn ones.

    Args:
        run: the run to load from; its newest weights, which no validation case has chosen.
        fresh: newly drawn variables of the network to train.
        parts: ``network`` loads all but the heads, whose classes may differ; ``encoder`` the conv
            stages alone.
        card: model card of the network to train.

    Returns:
        The variables, and one line that says what was loaded and what is new.

    Raises:
        InputError: a part is missing there or of another shape, the first one is named; or that
            run was trained on another split.
    """
    _, theirs, loaded = load_model(run, newest=True)
    check_split(run, theirs, card)
    leaves, _ = jax.tree_util.tree_flatten_with_path(loaded)
    there = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    taken: dict[str, int] = {}
    drawn: dict[str, int] = {}

    def choose(path: tuple[Any, ...], leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        layer = _layer(path)
        if not _is_loaded(layer, parts):
            drawn[layer] = drawn.get(layer, 0) + leaf.size
            return leaf
        if name not in there or there[name].shape != leaf.shape:
            found = there[name].shape if name in there else "nothing"
            raise InputError(
                run,
                f"{name} is {found}",
                f"shape {leaf.shape}",
                "use the same --model options and --patches.neighbours",
            )
        taken[layer] = taken.get(layer, 0) + leaf.size
        return there[name]

    variables = jax.tree_util.tree_map_with_path(choose, dict(fresh))
    return variables, (
        f"{run}: loaded {len(taken)} layers ({sum(taken.values()):,} values); "
        f"new are {', '.join(drawn)} ({sum(drawn.values()):,} values)"
    )


def loaded_parts(params: PyTree, parts: Parts) -> PyTree[bool]:
    """For each parameter whether :func:`load_parts` loads it."""
    return jax.tree_util.tree_map_with_path(
        # Within ``params`` the layer is the path's first key, not its second.
        lambda path, _: _is_loaded(_name(path[0]), parts),
        params,
    )


def _is_loaded(layer: str, parts: Parts) -> bool:
    return layer.startswith(_ENCODER) if parts == "encoder" else not layer.startswith("head_")


def _layer(path: tuple[Any, ...]) -> str:
    """The layer's name in a path (collection, layer, …)."""
    return _name(path[1])


def _name(part: Any) -> str:
    return str(getattr(part, "key", part))
