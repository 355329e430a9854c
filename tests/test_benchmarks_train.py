"""The benchmarks of training: both programs do the same work, and the scripts run."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pipeline
import pytest
import side_by_side
import torch
import torch_step
import train

from penn_jax.config import (
    Config,
    ModelConfig,
    OptimConfig,
    PatchConfig,
    PhotometryConfig,
    TrainConfig,
)
from penn_jax.data.store import Store
from penn_jax.export.torch import to_torch
from penn_jax.export.weights import torch_state
from penn_jax.model.augment import augment
from penn_jax.model.network import Network, initialise
from penn_jax.optim.sgd import build_optimiser
from penn_jax.optim.step import build_step, create_state
from penn_jax.train import segmentation_objective

CLASSES, CHANNELS = 3, 2
STILL = PhotometryConfig(gain=0.0, offset=0.0, gamma=0.0, noise=0.0, bias_field=0.0)
CONFIG = Config(
    patches=PatchConfig(size=(16, 16)),
    photometry=STILL,
    model=ModelConfig(stem=2, channels=(4, 8)),
    # Without what the rival is spared, and at one rate.
    optim=OptimConfig(schedule="constant", warmup=0.0, centralise=False, clip=0.5),
    train=TrainConfig(batch_size=4),
)


@pytest.fixture
def both():
    """The same random weights as our network and as PyTorch's, and a batch with ignored voxels."""
    network = Network(CONFIG.model, CLASSES)
    variables = initialise(network, jax.random.key(0), CHANNELS, 2)
    twin = to_torch(jax.device_get(variables), CONFIG.model, CLASSES, CHANNELS, 2).train()
    rng = np.random.default_rng(0)
    label = rng.integers(CLASSES, size=(4, 16, 16)).astype(np.uint8)
    label[:, 3:6] = 255
    image = rng.normal(size=(4, 16, 16, CHANNELS)).astype(np.float32)
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label), "index": jnp.arange(4)}
    there = torch.from_numpy(np.moveaxis(image, -1, 1).copy()), torch.from_numpy(label)
    return network, variables, batch, twin, there


def test_same_weights_same_logits_while_training(both):
    network, variables, batch, twin, (image, _) = both
    (ours, *_), _ = network.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
    theirs = twin(image).detach().numpy()
    np.testing.assert_allclose(np.moveaxis(ours, -1, 1), theirs, atol=1e-5)


def test_same_weights_same_loss_and_gradient(both):
    network, variables, batch, twin, (image, label) = both
    objective = segmentation_objective(network, CONFIG, jax.random.key(0))
    (loss, _), gradient = jax.value_and_grad(objective, has_aux=True)(
        variables["params"], variables["batch_stats"], batch, lambda tree: tree
    )
    theirs = torch_step.segmentation_loss(twin(image), label, CONFIG.loss)
    theirs.backward()
    assert float(loss) == pytest.approx(theirs.item(), rel=1e-6)
    expected = torch_state(jax.device_get({"params": gradient}))
    found = {name: p.grad.numpy() for name, p in twin.named_parameters()}
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=2e-6, err_msg=name)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_three_steps_lead_to_the_same_weights(both, layout):
    network, variables, batch, twin, (image, label) = both
    objective = segmentation_objective(network, CONFIG, jax.random.key(0))
    optimiser = build_optimiser(CONFIG.optim)
    step = jax.jit(build_step(objective, optimiser, CONFIG.optim.average))
    state = create_state(variables["params"], variables["batch_stats"], optimiser)
    theirs = torch_step.training_step(twin, CONFIG, layout)
    for _ in range(3):
        state, _ = step(state, batch, jnp.float32(0.5))
        theirs(image.contiguous(memory_format=layout), label, True)
    expected = torch_state(
        jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    )
    for name, value in twin.state_dict().items():
        if name.endswith("running_var"):
            continue  # PyTorch's running variance is unbiased
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_allclose(value.numpy(), expected[name], atol=2e-5, err_msg=name)


def gain(x, changed):
    log = np.log((changed / x)[np.abs(x) > 0.1])
    return np.ptp(log), log.mean()


def offset(x, changed):
    return np.ptp(changed - x), (changed - x).mean()


def gamma(x, changed):
    low, width = x.min(), np.ptp(x)
    before, after = (np.log((part - low) / width + 1e-9) for part in (x, changed))
    exponent = (after / before)[(before > -1.5) & (before < -0.1)]
    return np.ptp(exponent), np.log(exponent.mean())


def bias_field(x, changed):
    inner = x > x.min() + 0.5
    field = np.log((changed - x.min())[inner] / (x - x.min())[inner])
    t = np.linspace(-1, 1, len(x))
    rows, columns = (part[inner] for part in np.meshgrid(t, t, indexing="ij"))
    terms = np.stack([rows, rows**2 - 1 / 3, columns, columns**2 - 1 / 3], axis=1)
    shares, *_ = np.linalg.lstsq(terms, field, rcond=None)
    return np.ptp(terms @ shares - field), np.abs(shares).max()


def noise(x, changed):
    return 0.0, (changed - x).std()


@pytest.mark.parametrize("part", [gain, offset, gamma, bias_field, noise])
def test_each_photometric_part_is_of_the_same_kind_and_strength(part):
    # Each function gives how far a change is from its kind, and its strength, here at most 0.2.
    config = replace(STILL, **{part.__name__: 0.2})
    x = np.random.default_rng(1).normal(size=(8, 32, 32, 1)).astype(np.float32)
    ours = augment(jnp.asarray(x), jax.random.split(jax.random.key(0), 8), config)
    torch.manual_seed(0)
    theirs = torch_step.augment(torch.from_numpy(np.moveaxis(x, -1, 1).copy()), config)
    for changed in (np.asarray(ours)[..., 0], theirs[:, 0].numpy()):
        for before, after in zip(x[..., 0], changed, strict=True):
            deviation, strength = part(before.astype(float), after.astype(float))
            assert deviation < 5e-3
            # The standard deviation of 1,024 draws is off by 2 % or so.
            assert 1e-4 < abs(strength) < 0.2 * 1.1


# ---- the programs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    path = side_by_side.made_store(tmp_path_factory.mktemp("noise"), side=32, cases=3)
    # The smallest network: what is tested is that everything runs.
    config = replace(CONFIG, model=ModelConfig(stem=2, channels=(4,), blocks=1))
    config = replace(config, patches=PatchConfig(size=(16, 16), flip=True))
    config = replace(config, photometry=PhotometryConfig())
    cases = tuple(Store(path).cases)
    return train.Job(config, path, cases, channels=1, classes=2, compile=("none",))


def test_penn_runs(job):
    measure = train.penn(job)
    for what in (train.STEP, train.DATA):
        speed = measure(what, 0.05, 0)
        assert speed.patches > 0
        assert 0 <= speed.waiting <= 1


# What PyTorch and MONAI warn of is theirs.
@pytest.mark.filterwarnings("ignore")
def test_the_rival_runs(job, monkeypatch, capsys):
    monkeypatch.setattr(train, "TRIAL_SECONDS", 0.02)
    measure = train.theirs(job)
    assert "PyTorch runs none, channels" in capsys.readouterr().out
    for what in (train.STEP, train.DATA, train.TRANSFORMS):
        assert measure(what, 0.05, 0).patches > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", pipeline.PROGRAMS)
def test_every_loader_runs(job, name, monkeypatch):
    monkeypatch.setattr(pipeline, "WARM_UP_SECONDS", 0.02)
    if name == "TorchIO":
        pytest.importorskip("torchio")
    config = job.config
    measure = pipeline.PROGRAMS[name](pipeline.Job(job.store, job.cases, config.patches, 4))
    assert measure(0.02) > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("side", [16, 32])
def test_monai_cuts_patches_of_the_same_kind(job, side):
    patches = replace(job.config.patches, size=(side, side))
    loader = pipeline.monai_loader(Store(job.store), job.cases, patches, batch_size=32)
    batch = next(iter(loader))
    assert batch["image"].shape == (32, 1, side, side)
    assert batch["label"].shape == (32, 1, side, side)
    assert batch["label"].dtype == torch.uint8
    assert set(batch["label"].unique().tolist()) == {0, 1}
    # A sixteenth of each frame is foreground: half the patches are centred on it, or all hold it.
    held = (batch["label"].flatten(1) == 1).any(dim=1).float().mean()
    assert held >= 0.5


def test_the_count_of_operations_of_one_convolution(job, monkeypatch):
    # 3-wide, 1 to 4 channels, 16×16 voxels, forward and the weights' gradient (the image needs
    # none); then the head, 1-wide, 4 to 2 channels, forward and two gradients.
    model = ModelConfig(stem=1, channels=(4,), blocks=1)
    monkeypatch.setattr(train, "product_speed", lambda *_: 1e9)
    limit = train.ceiling(replace(job, config=replace(CONFIG, model=model)))()
    assert limit.flops == 2 * 256 * (2 * 9 * 4 + 3 * 4 * 2)
    assert limit.peak == 1e9


def test_the_table_tells_medians_and_ratios():
    speeds = {
        ("penn_jax", train.STEP, 0): [train.Speed(n, 0.0) for n in (90.0, 100.0, 200.0)],
        ("PyTorch", train.STEP, 0): [train.Speed(n, 0.0) for n in (60.0, 80.0, 200.0)],
        ("penn_jax", train.DATA, 0): [train.Speed(60.0, 0.1)],
        ("penn_jax", train.DATA, 2): [train.Speed(90.0, 0.01)],
        ("PyTorch", train.DATA, 2): [train.Speed(30.0, 0.5)],
        ("PyTorch", train.TRANSFORMS, 2): [train.Speed(20.0, 0.7)],
    }
    limit = train.Ceiling("a device", flops=1e9, peak=1e12)
    lines = list(train.table(speeds, limit))
    # 100 patches/s of 1 GFLOP are a tenth of 1 TFLOP/s.
    assert lines[2] == "| penn_jax | step alone | – | 100.0 | 90.0, 100.0, 200.0 | 10.0% | – |"
    assert lines[4] == "| penn_jax | data included | 2 | 90.0 | 90.0 | 9.0% | 1.0% |"
    with_monai = "penn_jax / PyTorch with MONAI, data included"
    assert lines[-3:] == [
        "penn_jax / PyTorch, step alone: 1.25; of each turn 1.00 to 1.50, median 1.25",
        f"{with_monai}: 3.00; of each turn 3.00 to 3.00, median 3.00",
        f"{with_monai}, intensities changed by MONAI: 4.50; of each turn 4.50 to 4.50, median 4.50",
    ]


def test_a_served_function_answers_or_tells_why_not():
    served = side_by_side.Served(functools.partial, divmod, 7)
    broken = side_by_side.Served(int, "seven")
    assert served.failure() is None
    assert served(2) == (3, 1)
    assert "ValueError: invalid literal" in str(broken.failure())
    served.close()
    broken.close()
