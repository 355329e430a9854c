"""Every number a user can set, as frozen dataclasses: one section for each part of the project.

A run's config is written in Python as short overrides of the defaults (``configs/``), changed on
the command line (``--optim.learning-rate 0.02``), and recorded as JSON, which is read back
strictly: an unknown key or a value out of range is an error that names it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import ConfigDict, StringConstraints, TypeAdapter

Positive = Annotated[int, Gt(0), Lt(2**31)]
NonNegative = Annotated[int, Ge(0), Lt(2**31)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]

Spacing = Literal["median", "native"] | Annotated[tuple[PositiveFloat, ...], MinLen(2)]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class PrepareConfig:
    """How raw scans become a prepared store."""

    __pydantic_config__ = _STRICT

    dimensions: Literal[2, 3] = 2
    """2: the volume is sliced along its coarsest axis; 3: it is kept whole."""
    spacing: Literal["median", "native"] | Annotated[tuple[PositiveFloat, ...], MinLen(2)] = (
        "median"
    )
    """Voxel size of the frames in mm: given, the training cases' ``median``, or ``native``."""
    merge_labels: bool = False
    """Every label becomes one foreground class."""
    validation_fraction: Annotated[float, Gt(0), Le(0.5)] = 0.2
    """Share of the subjects held out where the raw folder has no ``splits_final.json``."""
    seed: NonNegative = 0
    """Decides the split of a raw folder that has none."""
    allow_leak: bool = False
    """A scan or subject on both sides of a split is a finding, not an error."""


@dataclass(frozen=True)
class PatchConfig:
    """Which patches the network sees while training, and how they are bent."""

    __pydantic_config__ = _STRICT

    size: Annotated[tuple[Positive, ...], MinLen(2)] = (96, 96)
    """Voxels along each axis of the network's input."""
    neighbours: NonNegative = 0
    """2-D only: this many slices on each side join the slice as further channels."""
    foreground_fraction: Fraction = 0.5
    """Share of patches centred on a voxel of a foreground class, classes equally likely."""
    rotation_degrees: NonNegativeFloat = 15.0
    """Largest rotation to either side, drawn uniformly, in the plane of the last two axes."""
    scaling: Annotated[float, Ge(1)] = 1.2
    """Largest magnification s, drawn log-uniformly from 1/s to s, the same for all axes."""
    stretch: Annotated[float, Ge(1)] = 1.0
    """As ``scaling``, but drawn for each axis on its own, on top of it."""
    flip: bool = False
    """Mirror each axis with probability one half."""


@dataclass(frozen=True)
class PhotometryConfig:
    """Random changes of intensity, made on the device inside the training step."""

    __pydantic_config__ = _STRICT

    gain: NonNegativeFloat = 0.2
    """Contrast is multiplied by exp(u), u uniform in ± gain."""
    offset: NonNegativeFloat = 0.2
    """Brightness shift, uniform in ± offset, in standard deviations of the image."""
    gamma: NonNegativeFloat = 0.3
    """Intensities, scaled to 0..1, are raised to exp(u), u uniform in ± gamma."""
    noise: NonNegativeFloat = 0.1
    """Largest standard deviation of Gaussian noise."""
    bias_field: NonNegativeFloat = 0.2
    """Amplitude of a smooth multiplicative field (random polynomial of degree two)."""


@dataclass(frozen=True)
class ModelConfig:
    """The convolution-deconvolution network."""

    __pydantic_config__ = _STRICT

    stem: Literal[1, 2, 4] = 2
    """Stride of the first convolution (kernel = stride) and of the last deconvolution."""
    channels: Annotated[tuple[Positive, ...], MinLen(1)] = (32, 64, 128, 192)
    """Features of each stage; each stage after the first halves the grid."""
    blocks: Positive = 2
    """3-wide convolutions in each stage."""
    skip: Literal["concat", "add", "none"] = "concat"
    """How the conv stage's features join the deconvolution stage of the same grid."""
    residual: bool = False
    """Each stage adds its first feature map to its last."""
    norm: Literal["batch", "group", "none"] = "batch"
    """``batch`` folds into the convolutions at prediction; ``group`` depends on the whole
    frame, which is never cut."""
    dropout: Annotated[float, Ge(0), Le(0.9)] = 0.0
    """Share of the deepest stage's channels dropped, whole channels at a time."""
    deep_supervision: bool = False
    """Each deconvolution stage predicts too, with half the loss weight of the next finer one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters, statistics and losses stay float32."""


@dataclass(frozen=True)
class LossConfig:
    """Cross-entropy + soft Dice."""

    __pydantic_config__ = _STRICT

    cross_entropy: NonNegativeFloat = 1.0
    dice: NonNegativeFloat = 1.0


@dataclass(frozen=True)
class OptimConfig:
    """The enhanced SGD; with clip 0, centralise off and decay 0 it is Nesterov SGD."""

    __pydantic_config__ = _STRICT

    name: Literal["sgd", "adamw"] = "sgd"
    """``adamw`` is the comparison: it takes the same clip, schedule and decay."""
    learning_rate: PositiveFloat = 0.02
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: PositiveFloat = 0.9
    """Exponent of the ``poly`` schedule."""
    warmup: Fraction = 0.03
    """Share of the run in which the rate climbs linearly."""
    momentum: Annotated[float, Ge(0), Le(0.9999)] = 0.95
    nesterov: bool = True
    weight_decay: NonNegativeFloat = 5e-4
    """On kernels only."""
    clip: NonNegativeFloat = 5.0
    """Largest global norm of the gradient; 0 leaves it as it is."""
    centralise: bool = True
    """Subtract from each kernel's gradient its mean over all axes but the output channel."""
    average: Annotated[float, Ge(0), Le(0.99999)] = 0.995
    """Decay of the weight average used at prediction, which at first looks back on a tenth of the
    steps made; 0 uses the weights."""
    pretrained_rate: Fraction = 1.0
    """Share of the learning rate at which parts loaded by ``--init`` step."""
    frozen: Fraction = 0.0
    """Share of the run, from its start, in which parts loaded by ``--init`` do not step."""
    most_skipped: Positive = 20
    """This many steps in a row with a gradient that is not finite stop the run."""


@dataclass(frozen=True)
class TrainConfig:
    """The course of a run."""

    __pydantic_config__ = _STRICT

    seed: NonNegative = 0
    labelled: NonNegative = 0
    """Labelled training cases that are used, drawn by the seed, fewer being a part of more; 0
    uses all."""
    batch_size: Positive = 16
    """Global: shared by all devices and hosts."""
    accumulate: Positive = 1
    """Parts of a batch that pass through the devices one after the other, to need less memory; one
    more forward pass if above 1, and batch normalisation within each part."""
    max_steps: NonNegative = 1000
    """The budget in steps; 0 where ``max_seconds`` gives it."""
    max_seconds: NonNegativeFloat = 0.0
    """The budget in seconds of training, validation excluded; 0 where ``max_steps`` gives it."""
    validate_every: NonNegative = 0
    """Steps between validations; 0 validates at the end only."""
    checkpoint_every: NonNegative = 500
    """Steps between checkpoints; one is always written at the end."""
    log_every: Positive = 20
    initialise: Literal["encoder", "network"] = "network"
    """What ``--init`` loads: the conv stages, or the deconvolution stages too; never a head."""
    workers: NonNegative = 0
    """Processes that cut patches; 0 cuts them in a thread beside the training step."""
    parallel: Literal["jit", "pmap"] = "jit"


@dataclass(frozen=True)
class PretrainConfig:
    """Self-supervision: the network restores patches that were corrupted; 0 switches a part off."""

    __pydantic_config__ = _STRICT

    block: Positive = 16
    """Side of a block, in voxels."""
    masked: Fraction = 0.4
    """Share of the blocks that are hidden."""
    shuffled: Fraction = 0.0
    """Share of the blocks whose voxels change places among themselves."""
    curved: Fraction = 0.0
    """Share of the patches whose intensities pass through a random monotone curve."""
    inpainted: Fraction = 0.0
    """Share of the patches in which a few boxes are replaced by noise."""
    outpainted: Fraction = 0.0
    """Share of the patches in which all but a few boxes is replaced by noise."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation of Gaussian noise added everywhere, in those of the image."""


@dataclass(frozen=True)
class PredictConfig:
    """How whole frames are predicted."""

    __pydantic_config__ = _STRICT

    batch_size: Positive = 4
    """Most slices or tiles evaluated at once."""
    mirror: bool = False
    """Average the probabilities over all mirrorings."""
    memory_budget: PositiveFloat = 1.0
    """GiB that evaluating the network may take, besides the scan itself; no mask depends on it."""
    smallest_component: NonNegativeFloat = 0.0
    """Connected components of a class below this volume in mm³ become background; 0 keeps all."""


@dataclass(frozen=True)
class Config:
    """All that a run depends on besides the data and the machine."""

    __pydantic_config__ = _STRICT

    name: str = "penn"
    patches: PatchConfig = field(default_factory=PatchConfig)
    photometry: PhotometryConfig = field(default_factory=PhotometryConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)


@dataclass(frozen=True)
class Arm:
    """One way to train, of those that a study compares."""

    __pydantic_config__ = _STRICT

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Also of its folder."""
    config: Config
    """Of the supervised run; its seed is the study's to set."""
    description: str = ""
    pretrain: Config | None = None
    """Of a run whose weights start it, which restores corrupted patches unless ``phantoms`` or
    ``teacher`` say otherwise; arms with the same one share it."""
    phantoms: NonNegative = 0
    """Synthetic lumbar spines with labelled vertebrae, so many, from which ``pretrain`` learns to
    segment; it sees no scan of the data."""
    teacher: str | None = None
    """The arm whose run of the same fold and seed labels the scans that ``pretrain`` sees, which
    then is self-training."""
    baseline: str | None = None
    """The arm that this one is compared with, case by case."""
    learning_rates: tuple[PositiveFloat, ...] = ()
    """Tried first, with a seed and validation cases of their own; the best replaces the config's:
    the one that reaches the target in the fewest steps, then the one of the highest Dice."""


@dataclass(frozen=True)
class Study:
    """Arms × folds × seeds."""

    __pydantic_config__ = _STRICT

    name: str
    title: str
    arms: Annotated[tuple[Arm, ...], MinLen(1)]
    note: str = ""
    """What a reader of the table must know."""
    seeds: Annotated[tuple[NonNegative, ...], MinLen(1)] = (0, 1, 2)
    folds: Annotated[tuple[NonNegative, ...], MinLen(1)] = (0,)
    target_dice: Fraction = 0.0
    """Mean validation Dice to which steps and seconds are counted; 0 counts none. It is seen only
    where the arms' ``train.validate_every`` looks."""
    sweep_seed: NonNegative = 1000
    """Of the runs that choose a learning rate."""


Section = TypeVar("Section")


def to_json(section: Any) -> dict[str, Any]:
    """The section as plain JSON types, keys in the order of the dataclass."""
    return json.loads(json.dumps(dataclasses.asdict(section)))


def from_json(kind: type[Section], values: dict[str, Any]) -> Section:
    """Rebuild a section, checking every key, type and range.

    Raises:
        pydantic.ValidationError: an unknown key, a wrong type or a value out of range.
    """
    # As JSON: strict, and yet a list is a tuple's only form there.
    return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)


def check(section: Section) -> Section:
    """The same section if every value is in its range.

    Raises:
        pydantic.ValidationError: as ``from_json``.
    """
    return from_json(type(section), to_json(section))


def config_hash(section: Any) -> str:
    """Sixteen hex digits of the SHA-256 of the section's canonical JSON."""
    text = json.dumps(to_json(section), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def json_text(values: dict[str, Any]) -> str:
    """The one way in which this project writes JSON."""
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, never half of it."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json_text(values))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
