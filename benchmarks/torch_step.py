"""The training step that users of PyTorch write for penn_jax's network: ``train.py``'s rival.

The same work as ``penn_jax/optim/step.py``, but for the centralised gradients and the check that
gradients are finite.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from penn_jax.config import Config, LossConfig, PhotometryConfig
from penn_jax.types import IGNORE_LABEL

Train = Callable[[torch.Tensor, torch.Tensor, bool], torch.Tensor]
"""(image (B, M, *size), label (B, *size) uint8, whether to change intensities) -> loss."""


def training_step(
    network: nn.Module, config: Config, layout: torch.memory_format, mode: str = "none"
) -> Train:
    """One training step, which changes the network.

    Args:
        network: on the device to train on; put into training mode and the layout here.
        config: of the run; its precision is that of the automatic mixed precision.
        layout: of the feature maps.
        mode: of ``torch.compile``, or ``none`` to leave it out.
    """
    network.to(memory_format=layout).train()
    kind = next(network.parameters()).device.type
    mixed = config.model.precision == "bfloat16"

    def changed(image: torch.Tensor) -> torch.Tensor:
        return augment(image, config.photometry)

    def loss_of(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with torch.autocast(kind, torch.bfloat16, enabled=mixed):
            scores = network(image)
        return segmentation_loss(scores.float(), label, config.loss)

    if mode != "none":
        changed = torch.compile(changed)
        loss_of = torch.compile(loss_of, mode=mode)
    update = build_update(network, config)

    def train(image: torch.Tensor, label: torch.Tensor, change: bool) -> torch.Tensor:
        with torch.no_grad():
            image = changed(image).contiguous(memory_format=layout) if change else image
        loss = loss_of(image, label)
        loss.backward()
        update()
        return loss.detach()

    return train


def build_update(network: nn.Module, config: Config) -> Callable[[], None]:
    """Clip, Nesterov SGD, weight average: one call after the gradients are there."""
    optim = config.optim
    parameters = list(network.parameters())
    kernels = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    sgd = torch.optim.SGD(
        [{"params": kernels, "weight_decay": optim.weight_decay}, {"params": others}],
        lr=optim.learning_rate,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        fused=True,
    )
    current = [*parameters, *(b for b in network.buffers() if b.is_floating_point())]
    average = [tensor.detach().clone() for tensor in current]

    def update() -> None:
        if optim.clip:
            torch.nn.utils.clip_grad_norm_(parameters, optim.clip)
        sgd.step()
        sgd.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, current, 1.0 - optim.average)

    return update


def segmentation_loss(
    scores: torch.Tensor, label: torch.Tensor, config: LossConfig
) -> torch.Tensor:
    """Cross-entropy + soft Dice of ``penn_jax/model/loss.py``.

    Args:
        scores: (B, K, *size), float32.
        label: (B, *size), uint8; 255 is ignored.
        config: weights of the two.
    """
    valid = label != IGNORE_LABEL
    number = torch.where(valid, label, 0).long()
    target = (one_hot(number, scores.shape[1]) * valid[..., None]).movedim(-1, 1).float()
    likely = scores.softmax(dim=1) * valid[:, None]
    axes = [0, *range(2, scores.ndim)]
    overlap = (likely * target).sum(axes)
    dice = (2 * overlap + 1) / (likely.sum(axes) + target.sum(axes) + 1)
    entropy = cross_entropy(scores, torch.where(valid, number, -100), reduction="sum")
    entropy = entropy / valid.sum().clamp(min=1)
    return config.cross_entropy * entropy + config.dice * (1 - dice[1:]).mean()


def augment(image: torch.Tensor, config: PhotometryConfig) -> torch.Tensor:
    """The photometric augmentation of ``penn_jax/model/augment.py``, with draws of its own.

    Args:
        image: (B, M, H, W).
        config: strengths.
    """

    def uniform(most: float, *shape: int) -> torch.Tensor:
        draw = torch.rand(len(image), *shape, 1, 1, 1, device=image.device)
        return most * (2 * draw - 1)

    if config.gamma:
        low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
        width = (high - low).clamp(min=1e-6)
        unit = ((image - low) / width).clamp(min=1e-6)
        image = unit ** uniform(config.gamma).exp() * width + low
    if config.bias_field:
        low = image.amin((1, 2, 3), keepdim=True)
        rows, columns = (torch.linspace(-1, 1, n, device=image.device) for n in image.shape[2:])
        shares = uniform(1.0, 4)
        field = (
            shares[:, 0] * rows[:, None]
            + shares[:, 1] * (rows[:, None] ** 2 - 1 / 3)
            + shares[:, 2] * columns
            + shares[:, 3] * (columns**2 - 1 / 3)
        )
        image = (image - low) * (config.bias_field * field).exp() + low
    if config.gain:
        image = image * uniform(config.gain).exp()
    if config.offset:
        image = image + uniform(config.offset)
    if config.noise:
        level = config.noise * torch.rand(len(image), 1, 1, 1, device=image.device)
        image = image + level * torch.randn_like(image)
    return image
