"""The learning rate's course against hand calculations and PyTorch's schedulers."""

import math

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penn_jax.config import OptimConfig
from penn_jax.optim.schedule import relative_rate

# By hand, with warm-up 0.2: s = 0.1 is half-way up, s = 0.6 is t = (0.6 - 0.2) / 0.8 = 1/2,
# s = 0.8 is t = 3/4. Poly with exponent 2: 1/4 and 1/16. Cosine: (1 + cos 90°) / 2 = 1/2 and
# (1 + cos 135°) / 2 = (1 - √½) / 2.
BY_HAND = [
    ("poly", {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 0.25, 0.8: 0.0625, 1.0: 0.0}),
    ("cosine", {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 0.5, 0.8: 0.5 - math.sqrt(0.125), 1.0: 0.0}),
    ("constant", {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 1.0, 0.8: 1.0, 1.0: 1.0}),
]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize(("schedule", "expected"), BY_HAND, ids=[name for name, _ in BY_HAND])
def test_values_by_hand(schedule, expected, compiled):
    config = OptimConfig(schedule=schedule, warmup=0.2, power=2.0)
    rate = jax.jit(lambda s: relative_rate(s, config))
    with jax.numpy_dtype_promotion("strict"):
        for progress, value in expected.items():
            got = rate(progress) if compiled else relative_rate(progress, config)
            assert got.shape == ()
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, value, atol=3e-7)


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_same_as_pytorch_without_warm_up(schedule):
    """torch's PolynomialLR and CosineAnnealingLR over 40 steps, at progress = step / 40."""
    config = OptimConfig(schedule=schedule, warmup=0.0, power=0.9)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = (
        torch.optim.lr_scheduler.PolynomialLR(optimiser, total_iters=40, power=0.9)
        if schedule == "poly"
        else torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=40)
    )
    for step in range(41):
        expected = scheduler.get_last_lr()[0]
        np.testing.assert_allclose(relative_rate(step / 40, config), expected, atol=2e-6)
        optimiser.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_ends_of_the_warm_up_range(schedule, warmup):
    """No warm-up starts at the full rate; nothing but warm-up ends at it: both by definition."""
    config = OptimConfig(schedule=schedule, warmup=warmup)
    assert relative_rate(warmup, config) == 1.0
    if warmup == 1.0:
        np.testing.assert_allclose(relative_rate(0.3, config), 0.3, rtol=1e-6)


def test_a_clock_past_its_budget_stays_at_the_end():
    """(1 - t)^0.9 of t > 1 would be NaN."""
    config = OptimConfig(schedule="poly")
    assert relative_rate(1.01, config) == 0.0
    assert relative_rate(-0.01, config) == 0.0


@settings(deadline=None, max_examples=40)
@given(
    schedule=st.sampled_from(["poly", "cosine", "constant"]),
    warmup=st.floats(0.02, 0.9),
    power=st.floats(1.0, 3.0),
)
def test_continuous_and_falling_after_the_warm_up(schedule, warmup, power):
    """On a grid of 4,001 points no jump exceeds step × steepest slope, which by calculus is
    1 / warmup while climbing and max(power, π / 2) / (1 - warmup) while falling."""
    config = OptimConfig(schedule=schedule, warmup=warmup, power=power)
    grid = np.linspace(0, 1, 4001, dtype=np.float32)
    rates = np.asarray(jax.vmap(lambda s: relative_rate(s, config))(grid))
    steepest = max(1 / warmup, max(power, math.pi / 2) / (1 - warmup))
    assert np.abs(np.diff(rates)).max() <= steepest / 4000 + 1e-5
    assert (np.diff(rates[grid >= warmup]) <= 1e-6).all()
    assert rates.min() >= 0
    assert rates.max() <= 1
