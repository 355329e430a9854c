"""Each part of the enhanced SGD against float64 NumPy, the whole against torch.optim."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from penn_jax.config import OptimConfig
from penn_jax.optim.sgd import (
    averaged,
    build_optimiser,
    init_average,
    kernels,
    skipped,
    update_average,
)

# Plain gradient descent at rate 1: each part is switched on alone.
PLAIN = OptimConfig(
    learning_rate=1.0,
    schedule="constant",
    warmup=0.0,
    momentum=0.0,
    weight_decay=0.0,
    clip=0.0,
    centralise=False,
)


def tree(seed):
    """A network's parameters in small: Linen's names, float32, the output channel last."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        "encoder": {
            "convolution": {"kernel": draw(3, 3, 2, 4), "bias": draw(4)},
            "norm": {"scale": draw(4), "bias": draw(4)},
        },
        "head": {"kernel": draw(4, 3), "bias": draw(3)},
    }


def is_kernel(path):
    return path[-1].key == "kernel"


def map64(function, *trees):
    """``function(is kernel, *leaves)`` over the trees, leaves as float64 NumPy."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(
            is_kernel(path), *(np.asarray(x, np.float64) for x in leaves)
        ),
        *trees,
    )


def close(got, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, expected)


def same_bits(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@functools.cache
def stepper(config, pretrained_encoder, compiled):
    pretrained = {"encoder": True, "head": False} if pretrained_encoder else None
    optimiser = build_optimiser(config, pretrained)

    def step(parameters, state, gradient, progress):
        updates, state = optimiser.update(gradient, state, parameters, progress=progress)
        return optax.apply_updates(parameters, updates), state

    return optimiser.init, jax.jit(step) if compiled else step


def run(config, parameters, gradients, progress=None, pretrained_encoder=False, compiled=True):
    """Parameters and state after one step for each of the gradients."""
    init, step = stepper(config, pretrained_encoder, compiled)
    state = init(parameters)
    # Optax's own Adam mixes float and int32.
    promotion = "strict" if config.name == "sgd" else "standard"
    with jax.numpy_dtype_promotion(promotion), jax.numpy_rank_promotion("raise"):
        for gradient, share in zip(gradients, progress or [0.5] * len(gradients), strict=True):
            parameters, state = step(parameters, state, gradient, jnp.float32(share))
    return parameters, state


def one_step(config, gradient, **settings):
    """What ``config`` subtracts from the parameters ``tree(0)`` in its first step."""
    parameters = tree(0)
    after, _ = run(config, parameters, [gradient], **settings)
    return map64(lambda _, before, now: before - now, parameters, after)


# Each part alone, against its equation in float64.


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jitted"])
def test_everything_off_is_gradient_descent(compiled):
    close(one_step(PLAIN, tree(1), compiled=compiled), tree(1), atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("largest", [0.5, 1e3], ids=["clipped", "left alone"])
def test_clip(largest, compiled):
    gradient = tree(1)
    norm = np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in jax.tree.leaves(gradient)))
    assert 0.5 < norm < 1e3
    expected = map64(lambda _, g: g * min(1, largest / norm), gradient)
    config = dataclasses.replace(PLAIN, clip=largest)
    close(one_step(config, gradient, compiled=compiled), expected, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jitted"])
def test_centralise(compiled):
    def reference(kernel, g):
        return g - g.mean(axis=tuple(range(g.ndim - 1)), keepdims=True) if kernel else g

    config = dataclasses.replace(PLAIN, centralise=True)
    expected = map64(reference, tree(1))
    close(one_step(config, tree(1), compiled=compiled), expected, atol=1e-6)


def test_centralise_spares_a_kernel_of_one_weight_per_channel():
    """Its mean over all axes but the output channel is itself: it would never move."""
    parameters = {"stem": {"kernel": np.zeros((1, 1, 1, 4), np.float32)}}
    gradient = {"stem": {"kernel": np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4)}}
    after, _ = run(dataclasses.replace(PLAIN, centralise=True), parameters, [gradient])
    same_bits(after, map64(lambda _, g: -g, gradient))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_on_kernels_only(name, compiled):
    """With a gradient of zeros only λw is left, for Adam too: 0 / (√0 + ε) = 0."""
    config = dataclasses.replace(PLAIN, name=name, weight_decay=0.25)
    expected = map64(lambda kernel, w: 0.25 * w * kernel, tree(0))
    zeros = jax.tree.map(np.zeros_like, tree(0))
    close(one_step(config, zeros, compiled=compiled), expected, atol=1e-6)


def test_kernels_are_the_leaves_of_that_name():
    assert kernels(tree(0)) == {
        "encoder": {
            "convolution": {"kernel": True, "bias": False},
            "norm": {"scale": False, "bias": False},
        },
        "head": {"kernel": True, "bias": False},
    }


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum(nesterov):
    gradients = [tree(seed) for seed in range(1, 11)]
    weights, momentum = map64(lambda _, w: w, tree(0)), map64(lambda _, w: 0 * w, tree(0))
    for gradient in gradients:
        momentum = map64(lambda _, m, g: 0.9 * m + g, momentum, gradient)
        direction = map64(lambda _, m, g: g + 0.9 * m if nesterov else m, momentum, gradient)
        weights = map64(lambda _, w, d: w - 0.125 * d, weights, direction)
    config = dataclasses.replace(PLAIN, learning_rate=0.125, momentum=0.9, nesterov=nesterov)
    close(run(config, tree(0), gradients)[0], weights, atol=5e-6)


def test_step_follows_progress():
    """η_t by hand: rate 0.5, cosine without warm-up, so 0.25 half-way and 0 at the end."""
    config = dataclasses.replace(PLAIN, learning_rate=0.5, schedule="cosine")
    for progress, rate in [(0.0, 0.5), (0.5, 0.25), (1.0, 0.0)]:
        expected = map64(lambda _, g, rate=rate: rate * g, tree(1))
        close(one_step(config, tree(1), progress=[progress]), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0])
def test_pretrained_parts_step_at_the_fraction(name, fraction):
    """The update is the other's times the fraction, to the bit; ``True`` covers a subtree."""
    config = dataclasses.replace(PLAIN, name=name, momentum=0.9, weight_decay=0.1)
    updates = []
    for pretrained in (None, {"encoder": True, "head": {"kernel": False, "bias": False}}):
        optimiser = build_optimiser(
            dataclasses.replace(config, pretrained_rate=fraction), pretrained
        )
        state = optimiser.init(tree(0))
        updates.append(optimiser.update(tree(1), state, tree(0), progress=0.5)[0])
    plain, discriminative = updates
    same_bits(discriminative["head"], plain["head"])
    scaled = jax.tree.map(lambda u: np.float32(fraction) * np.asarray(u), plain["encoder"])
    same_bits(discriminative["encoder"], scaled)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jitted"])
def test_frozen_parts_wait_for_their_share_of_the_run(compiled):
    """Until then not a bit of them changes; afterwards they step as they would have from there."""
    config = dataclasses.replace(PLAIN, frozen=0.3, pretrained_rate=0.5)
    settings = {"pretrained_encoder": True, "compiled": compiled}
    before, _ = run(config, tree(0), [tree(1), tree(2)], progress=[0.1, 0.299], **settings)
    same_bits(before["encoder"], tree(0)["encoder"])
    never = dataclasses.replace(config, frozen=0.0)
    unfrozen, _ = run(never, tree(0), [tree(1), tree(2)], progress=[0.1, 0.299], **settings)
    same_bits(before["head"], unfrozen["head"])
    after = one_step(config, tree(1), progress=[0.3], **settings)
    same_bits(after["encoder"], one_step(never, tree(1), progress=[0.3], **settings)["encoder"])


# The whole chain.


def test_all_parts_in_order_against_float64():
    """SPEC section 5 written out in NumPy: poly 0.9, warm-up 0.1, everything on, 50 steps."""
    config = OptimConfig(
        learning_rate=0.05,
        warmup=0.1,
        momentum=0.9,
        weight_decay=0.01,
        clip=5.0,
        pretrained_rate=0.3,
    )
    gradients = [tree(seed) for seed in range(1, 51)]
    progress = [(step + 0.5) / 50 for step in range(50)]
    weights, momentum = map64(lambda _, w: w, tree(0)), map64(lambda _, w: 0 * w, tree(0))

    def direction(kernel, g, w):
        if not kernel:
            return g
        return g - g.mean(axis=tuple(range(g.ndim - 1)), keepdims=True) + 0.01 * w

    for gradient, s in zip(gradients, progress, strict=True):
        norm = np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in jax.tree.leaves(gradient)))
        assert norm > 5.0
        clipped = map64(lambda _, g, norm=norm: g * 5.0 / norm, gradient)
        g = map64(direction, clipped, weights)
        momentum = map64(lambda _, m, g: 0.9 * m + g, momentum, g)
        rate = 0.05 * (s / 0.1 if s < 0.1 else (1 - (s - 0.1) / 0.9) ** 0.9)
        stepped = map64(lambda _, w, m, g, r=rate: w - r * (g + 0.9 * m), weights, momentum, g)
        slow = map64(lambda _, w, m, g, r=0.3 * rate: w - r * (g + 0.9 * m), weights, momentum, g)
        weights = {"encoder": slow["encoder"], "head": stepped["head"]}

    got, _ = run(config, tree(0), gradients, progress, pretrained_encoder=True)
    close(got, weights, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_jitted_and_eager_agree(name):
    """To float32 rounding: the compiler may fuse a product and a sum."""
    config = OptimConfig(name=name, learning_rate=0.01)
    gradients = [tree(seed) for seed in range(1, 6)]
    compiled = run(config, tree(0), gradients)
    eager = run(config, tree(0), gradients, compiled=False)
    close(compiled, eager, rtol=1e-5, atol=1e-6)


def test_later_steps_do_not_recompile():
    optimiser = build_optimiser(OptimConfig(), {"encoder": True, "head": False})
    update = jax.jit(optimiser.update)
    state = optimiser.init(tree(0))
    parameters = jax.tree.map(jnp.asarray, tree(0))
    for step in range(3):
        _, state = update(parameters, state, parameters, progress=jnp.float32(step / 3))
        assert update._cache_size() == 1


# Against PyTorch: a perceptron on 32 fixed samples, the loss differentiated by each library.

RNG = np.random.default_rng(0)
INPUT = RNG.normal(size=(32, 5)).astype(np.float32)
TARGET = RNG.normal(size=(32, 3)).astype(np.float32)
PERCEPTRON = {
    "hidden": {
        "kernel": RNG.normal(size=(5, 8)).astype(np.float32),
        "bias": RNG.normal(size=8).astype(np.float32),
    },
    "head": {
        "kernel": RNG.normal(size=(8, 3)).astype(np.float32),
        "bias": RNG.normal(size=3).astype(np.float32),
    },
}


def perceptron_loss(parameters, inputs, targets, tanh):
    hidden, head = parameters["hidden"], parameters["head"]
    features = tanh(inputs @ hidden["kernel"] + hidden["bias"][None])
    return ((features @ head["kernel"] + head["bias"][None] - targets) ** 2).mean()


def fit(config, steps=50):
    optimiser = build_optimiser(config)

    def loss(parameters):
        return perceptron_loss(parameters, INPUT, TARGET, jnp.tanh)

    @jax.jit
    def step(parameters, state, progress):
        value, gradient = jax.value_and_grad(loss)(parameters)
        updates, state = optimiser.update(gradient, state, parameters, progress=progress)
        return optax.apply_updates(parameters, updates), state, value

    parameters = jax.tree.map(jnp.asarray, PERCEPTRON)
    state, losses = optimiser.init(parameters), []
    for index in range(steps):
        parameters, state, value = step(parameters, state, jnp.float32(index / steps))
        losses.append(float(value))
    return parameters, losses


def fit_torch(kind, config, steps=50, **settings):
    """torch decays all parameters of a group: kernels and biases are two groups here."""
    parameters = jax.tree.map(lambda w: torch.tensor(w, requires_grad=True), PERCEPTRON)
    layers = parameters.values()
    optimiser = kind(
        [
            {"params": [x["kernel"] for x in layers], "weight_decay": config.weight_decay},
            {"params": [x["bias"] for x in layers], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        **settings,
    )
    scheduler = (
        torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)
        if config.schedule == "constant"
        else torch.optim.lr_scheduler.PolynomialLR(optimiser, steps, config.power)
    )
    inputs, targets = torch.tensor(INPUT), torch.tensor(TARGET)
    for _ in range(steps):
        optimiser.zero_grad()
        perceptron_loss(parameters, inputs, targets, torch.tanh).backward()
        if config.clip:
            every = [w for x in layers for w in x.values()]
            torch.nn.utils.clip_grad_norm_(every, config.clip)
        optimiser.step()
        scheduler.step()
    return jax.tree.map(lambda w: w.detach().numpy(), parameters)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_every_extra_off_is_pytorchs(nesterov):
    config = dataclasses.replace(
        PLAIN, learning_rate=0.05, momentum=0.9, nesterov=nesterov, weight_decay=0.02
    )
    got, losses = fit(config)
    assert losses[-1] < 0.7 * losses[0], "a run that learns nothing compares nothing"
    expected = fit_torch(torch.optim.SGD, config, momentum=0.9, nesterov=nesterov)
    close(got, expected, rtol=0, atol=2e-6)


def test_adamw_is_pytorchs():
    """Optax forms 1 - β^n in float32, PyTorch in float64: 2e-5 of each of the first steps."""
    config = dataclasses.replace(PLAIN, name="adamw", learning_rate=0.02, weight_decay=0.1)
    got, losses = fit(config)
    assert losses[-1] < 0.7 * losses[0]
    close(got, fit_torch(torch.optim.AdamW, config), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_clip_and_schedule_are_pytorchs(name):
    """Both optimisers with clip_grad_norm_ and PolynomialLR."""
    config = dataclasses.replace(
        PLAIN,
        name=name,
        learning_rate=0.05,
        schedule="poly",
        momentum=0.9,
        clip=0.5,
        weight_decay=0.02,
    )
    kind = torch.optim.SGD if name == "sgd" else torch.optim.AdamW
    settings = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    expected = fit_torch(kind, config, **settings)
    close(fit(config)[0], expected, rtol=1e-5, atol=1e-5)


# Steps that are skipped.


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("value", "compiled"),
    [(np.nan, True), (np.inf, True), (-np.inf, True), (np.nan, False)],
    ids=["nan", "inf", "-inf", "nan eager"],
)
def test_a_gradient_that_is_not_finite_changes_nothing(name, value, compiled):
    """Two good steps, then a bad one: parameters and momentum keep every bit."""
    config = OptimConfig(name=name, learning_rate=0.01)
    good = [tree(1), tree(2)]
    bad = tree(3)
    bad["head"]["bias"][1] = value
    before, state_before = run(config, tree(0), good, compiled=compiled)
    after, state_after = run(config, tree(0), [*good, bad], compiled=compiled)
    same_bits(after, before)
    same_bits(state_after.inner_state, state_before.inner_state)
    assert jax.tree.leaves(state_after.inner_state), "there is momentum to compare"


def test_skipped_steps_are_counted_in_a_row_and_in_total():
    config = OptimConfig()
    good = tree(1)
    bad = jax.tree.map(lambda g: np.full_like(g, np.nan), good)
    counts = [
        tuple(int(n) for n in skipped(run(config, tree(0), gradients)[1]))
        for gradients in ([good], [bad], [bad, bad], [bad, bad, good], [bad, bad, good, bad])
    ]
    assert counts == [(0, 0), (1, 1), (2, 2), (0, 2), (1, 3)]


def test_never_gives_up_skipping():
    """``optax.apply_if_finite`` takes the bad step once its count passes its limit."""
    config = OptimConfig()
    optimiser = build_optimiser(config)
    limit = jnp.int32(2**31 - 1)
    state = optimiser.init(tree(0))._replace(notfinite_count=limit, total_notfinite=limit)
    bad = jax.tree.map(lambda g: np.full_like(g, np.nan), tree(1))
    updates, state = optimiser.update(bad, state, tree(0), progress=0.5)
    assert all((np.asarray(u) == 0).all() for u in jax.tree.leaves(updates))
    assert skipped(state) == (limit, limit)


def test_the_step_after_a_skipped_one_is_as_if_it_had_not_been():
    bad = jax.tree.map(lambda g: np.full_like(g, np.inf), tree(1))
    with_bad, _ = run(OptimConfig(), tree(0), [tree(1), bad, tree(2)])
    without, _ = run(OptimConfig(), tree(0), [tree(1), tree(2)])
    same_bits(with_bad, without)


# The average.


def average_of(trees, decay):
    average = init_average(tree(0))
    update = jax.jit(update_average)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for each in trees:
            average = update(average, each, decay)
    return average


def window(decay, count):
    """W_1 … W_n in float64: by a tenth a step, then towards 1 / (1 - decay)."""
    widths = [1.0]
    while len(widths) < count:
        widths.append(max(1.0, min(1 + decay * widths[-1], widths[-1] + 0.1)))
    return np.array(widths)


@pytest.mark.parametrize("decay", [0.5, 0.8, 0.99999])
@pytest.mark.parametrize("count", [1, 2, 60])
def test_average_against_its_weights(decay, count):
    """Tree k enters with 1 / W_k, and each later one, j, leaves of it 1 - 1 / W_j; in float64."""
    trees = [tree(seed) for seed in range(1, count + 1)]
    widths = window(decay, count)
    weights = [np.prod(1 - 1 / widths[k:]) / widths[k - 1] for k in range(1, count + 1)]
    assert np.sum(weights) == pytest.approx(1, abs=1e-12)
    expected = map64(lambda _, *x: sum(w * v for w, v in zip(weights, x, strict=True)), *trees)
    close(averaged(average_of(trees, decay)), expected, atol=2e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 60])
def test_while_the_window_grows_the_weights_are_a_power(count):
    """Of tree k: C(k + 8, 9) / C(n + 9, 10), which is as k^9; by hand from W_n = (n + 9) / 10."""
    trees = [tree(seed) for seed in range(1, count + 1)]
    weights = [math.comb(k + 8, 9) / math.comb(count + 9, 10) for k in range(1, count + 1)]
    expected = map64(lambda _, *x: sum(w * v for w, v in zip(weights, x, strict=True)), *trees)
    close(averaged(average_of(trees, 0.99999)), expected, atol=2e-6)


def test_in_a_long_run_the_average_is_the_exponential_one():
    """Of decay 0.8: after 60 steps W is 1 / (1 - 0.8) = 5, and Σ 0.2 · 0.8^(n - k) x_k is left."""
    trees = [tree(seed) for seed in range(1, 181)]
    assert window(0.8, 60)[-1] == pytest.approx(5, abs=0.02)
    expected = map64(
        lambda _, *x: sum(0.2 * 0.8 ** (180 - k) * v for k, v in enumerate(x, start=1)), *trees
    )
    close(averaged(average_of(trees, 0.8)), expected, atol=2e-5)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jitted"])
def test_average_of_the_first_tree_and_of_decay_zero_is_the_tree(compiled):
    update = jax.jit(update_average) if compiled else update_average
    first = update(init_average(tree(0)), tree(1), 0.995)
    same_bits(averaged(first), tree(1))
    average = init_average(tree(0))
    for seed in (1, 2, 3):
        average = update(average, tree(seed), 0.0)
    same_bits(averaged(average), tree(3))


def test_average_of_equal_trees_stays_put():
    """Even where 1 - decay has two digits in float32."""
    average = init_average(tree(0))
    for _ in range(100):
        average = update_average(average, tree(1), 0.99999)
    same_bits(averaged(average), tree(1))


def test_average_is_float32_and_a_copy():
    """A copy, for parameters and average are donated to the same step."""
    half = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), tree(0))
    average = update_average(init_average(half), half, 0.9)
    assert {leaf.dtype for leaf in jax.tree.leaves(average)} == {np.dtype("float32")}
    parameters = jax.tree.map(jnp.asarray, tree(0))
    same_bits(averaged(init_average(parameters)), tree(0))
    step = jax.jit(
        lambda parameters, average: (parameters, update_average(average, parameters, 0.9)),
        donate_argnums=(0, 1),
    )
    _, average = step(parameters, init_average(parameters))
    same_bits(averaged(average), tree(0))
