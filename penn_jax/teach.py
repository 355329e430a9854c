"""Self-training: another run says what is where in scans that nobody labelled."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from penn_jax.config import Config
from penn_jax.data.remote import Place
from penn_jax.model.fold import fold
from penn_jax.model.network import Network, total_stride
from penn_jax.run import ModelCard, check_split, load_model
from penn_jax.types import InputError

Teach = Callable[[Float[Array, "B *size C"]], UInt8[Array, "B *size"]]
"""From the patches of a batch, as they were cut, to labels."""


def load_teacher(run: Place, config: Config, card: ModelCard) -> Teach:
    """The most likely classes by the network of another run.

    Args:
        run: of ``penn train``, on data of the same classes and channels.
        config: of the run that is taught.
        card: its model card.

    Raises:
        InputError: there is no such run, it takes other patches or knows other classes, or it was
            trained on another split.

    Reference:
        Xie et al., "Self-training with noisy student", 2020: the student sees augmented images,
        the teacher the images as they are.
    """
    other, theirs, variables = load_model(run, newest=True)
    for name in ("task", "labels", "channels", "dimensions", "spacing"):
        if theirs[name] != card[name]:
            raise InputError(
                run, f"its {name} is {theirs[name]}", f"{card[name]}", "choose another teacher"
            )
    check_split(run, theirs, card)
    if other.patches.neighbours != config.patches.neighbours:
        raise InputError(
            run,
            f"it takes {other.patches.neighbours} neighbouring slices",
            f"{config.patches.neighbours}",
            "set --patches.neighbours alike",
        )
    stride = total_stride(other.model)
    if any(size % stride for size in config.patches.size):
        raise InputError(
            "--patches.size", f"{config.patches.size}", f"multiples of {stride}", f"as {run} needs"
        )
    folded, model = fold(variables, other.model)
    network, folded = Network(model, len(card["labels"])), jax.device_put(folded)
    return lambda image: jnp.argmax(network.apply(folded, image)[0], axis=-1).astype(jnp.uint8)
