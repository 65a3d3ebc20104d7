"""Balls in bins: limits against closed forms and quadrature, and the plan on them."""

import math

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from trustml.privacy import accounting, balls_in_bins, plan, sampling

Relation = dp_accounting.NeighboringRelation
ADD, ONE, SPECIAL = (
    Relation.ADD_OR_REMOVE_ONE,
    Relation.REPLACE_ONE,
    Relation.REPLACE_SPECIAL,
)


class Clipper:
    """What a plan asks of a clipper, by hand."""

    privacy_unit = "example"
    trainable = None
    l2_clip_norm = 1.5
    rule = "flat"

    def sensitivity(self, relation):
        return (2 if relation is ONE else 1) * self.l2_clip_norm


def event(bins, z, epochs):
    gaussian = dp_accounting.GaussianDpEvent(z)
    epoch = balls_in_bins.BallsInBinsDpEvent(bins, gaussian)
    return dp_accounting.SelfComposedDpEvent(epoch, epochs)


def two_bins(z, epochs, epsilon, width=2e-3):
    """Delta of two bins: the plane on a grid, losses of epochs convolved on another."""
    x = np.linspace(-8 * z, 1 + 8 * z, 1501)
    density = stats.norm.pdf(x, 0, z)
    weights = np.outer(density, density) * (x[1] - x[0]) ** 2
    terms = np.exp((2 * x - 1) / (2 * z * z))
    ratio = (terms[:, None] + terms[None, :]) / 2
    losses = np.log(ratio)
    if epochs == 1:
        p = np.sum(weights * np.maximum(ratio - math.exp(epsilon), 0))
        return max(p, np.sum(weights * np.maximum(1 - math.exp(epsilon) * ratio, 0)))
    cells = np.rint(losses / width).astype(int)
    first = cells.min()
    deltas = []
    for law, sign in ((weights * ratio, -1), (weights, 1)):
        one = np.bincount((cells - first).ravel(), weights=law.ravel())
        total = one
        for _ in range(epochs - 1):
            total = np.convolve(total, one)
        values = (np.arange(len(total)) + first * epochs) * width
        deltas.append(
            np.sum(total * np.maximum(1 - np.exp(epsilon + sign * values), 0))
        )
    return max(deltas)


@pytest.mark.parametrize("z,epochs", [(1.0, 1), (0.7, 3), (3.0, 2)])
def test_one_bin_is_the_plain_gaussian(z, epochs):
    # Five limits at 99% a case: the seed is fixed, and true for 1 in 10 at worst.
    losses = balls_in_bins.simulate(1, z, epochs, 200_000)
    for epsilon in (0.0, 0.1, 0.5, 1.0, 3.0):
        delta = accounting.gaussian_delta(epsilon, math.sqrt(epochs) / z)
        assert losses.lower(epsilon) <= delta <= losses.upper(epsilon)
        if delta > 1e-2:
            assert losses.upper(epsilon) < 1.2 * losses.lower(epsilon)


@pytest.mark.parametrize("z,epochs", [(1.0, 1), (0.6, 1), (1.5, 1), (1.0, 3)])
def test_two_bins_against_quadrature(z, epochs):
    losses = balls_in_bins.simulate(2, z, epochs, 200_000)
    for epsilon in (0.05, 0.5, 1.0, 2.0):
        delta = two_bins(z, epochs, epsilon)
        assert losses.lower(epsilon) <= delta <= losses.upper(epsilon)
        if delta > 1e-2:
            assert losses.upper(epsilon) < 1.2 * losses.lower(epsilon)


def test_both_directions_are_simulated():
    # e^L under Q tells both: E_P f(L) = E_Q e^L f(L). In float64, without logarithms.
    bins, z, epochs = 3, 1.0, 2
    losses = balls_in_bins.simulate(bins, z, epochs, 400_000, seed=1)
    x = z * np.random.default_rng(0).standard_normal((400_000, epochs, bins))
    ratio = np.exp((2 * x - 1) / (2 * z * z)).mean(-1).prod(-1)
    for epsilon in (0.0, 0.4, 1.0):
        p, q = losses.means(epsilon)
        by_p = np.maximum(ratio - math.exp(epsilon), 0)
        by_q = np.maximum(1 - math.exp(epsilon) * ratio, 0)
        # Five standard errors of both simulations; the first has variance to spare.
        for found, values in ((p, by_p), (q, by_q)):
            error = 5 * math.sqrt(2 / 400_000) * np.std(values)
            assert abs(found - np.mean(values)) < error
    # A record that leaves shows more than one that comes: 0.106 and 0.094.
    assert q < 0.95 * p
    # A limit is that of the worse direction, each with half of the risk.
    assert losses.upper(0.4) == balls_in_bins._upper(
        losses.means(0.4)[0], 400_000, 5e-3
    )


def test_the_limits_hold_as_often_as_they_say():
    # 300 means of 50 numbers in [0, 1]: at 90% each side misses at most 10% and, since
    # the bound is not exact, less. 45 = 30 + 3 standard errors.
    generator = np.random.default_rng(0)
    missed = np.zeros(2, int)
    for _ in range(300):
        mean = generator.beta(0.05, 0.95, 50).mean()
        missed += [
            0.05 > balls_in_bins._upper(mean, 50, 0.1),
            0.05 < balls_in_bins._lower(mean, 50, 0.1),
        ]
    assert np.all(missed < 45)
    # Coins are the worst of them: there it is near Clopper and Pearson's exact limit.
    for count in (0, 1, 7, 500, 1000):
        exact = stats.beta.ppf(0.99, count + 1, 1000 - count) if count < 1000 else 1.0
        found = balls_in_bins._upper(count / 1000, 1000, 0.01)
        assert exact <= found * (1 + 1e-9) and found - exact < 0.35 * exact + 1e-12
        exact = stats.beta.ppf(0.01, count, 1001 - count) if count else 0.0
        assert balls_in_bins._lower(count / 1000, 1000, 0.01) <= exact * (1 + 1e-9)


def test_epsilon_is_that_of_the_upper_limit_never_of_the_mean():
    losses = balls_in_bins.simulate(5, 1.0, 1, 200_000)
    for level in (0.9, 0.99, 0.999):
        epsilon = losses.epsilon(1e-3, level)
        assert losses.upper(epsilon, level) <= 1e-3
        assert losses.upper(epsilon * (1 - 1e-5), level) > 1e-3
        assert max(losses.means(epsilon)) < 0.95e-3
    assert losses.epsilon(1e-3, 0.9) < losses.epsilon(1e-3, 0.999)
    # Too few draws to tell: no promise.
    assert balls_in_bins.simulate(5, 1.0, 1, 1000).epsilon(1e-6) == math.inf
    assert losses.epsilon(0.9) == 0.0


def test_by_the_accountant():
    for relation in (ADD, SPECIAL):
        by = accounting.epsilon(event(4, 2.0, 2), 1e-3, relation, "monte_carlo")
        draws = balls_in_bins.draws_for(1e-3)
        assert by == balls_in_bins.simulate(4, 2.0, 2, draws).epsilon(1e-3)
        assert accounting.delta(event(4, 2.0, 2), by, relation, "monte_carlo") < 1.1e-3
    plain = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(2.0), 2)
    assert by < accounting.epsilon(plain, 1e-3, ADD), "no amplification"
    both = dp_accounting.ComposedDpEvent([event(4, 2.0, 2), event(4, 3.0, 2)])
    for what, relation, accountant, sentence in (
        (
            event(4, 2.0, 2),
            ADD,
            "pld",
            "no bound but by Monte Carlo; use accountant='m",
        ),
        (event(4, 2.0, 2), ADD, "rdp", "no bound but by Monte Carlo"),
        (
            event(4, 2.0, 2),
            ONE,
            "monte_carlo",
            "no bound under REPLACE_ONE; change the",
        ),
        (plain, ADD, "monte_carlo", "is for balls in bins alone; use accountant='pld'"),
        (both, ADD, "monte_carlo", "is for epochs of balls in bins with one noise"),
    ):
        with pytest.raises(ValueError, match=sentence):
            accounting.epsilon(what, 1e-3, relation, accountant)


def test_bad_arguments():
    with pytest.raises(
        ValueError, match="monte_carlo' would draw 1e[+]13 numbers for 5"
    ):
        balls_in_bins.simulate(1000, 1.0, 500, 10**7)
    with pytest.raises(ValueError, match="bins=0 must be >= 1"):
        balls_in_bins.simulate(0, 1.0, 1)
    with pytest.raises(ValueError, match="level=1.0 must lie strictly between"):
        balls_in_bins.simulate(1, 1.0, 1, 100).upper(1.0, 1.0)


def make(**options):
    sampler = sampling.balls_in_bins(1000, 250, physical_batch_size=50, seed=0)
    options = {"steps": 8, "delta": 1e-3, "relation": ADD} | options
    return plan.make(Clipper(), options.pop("sampler", sampler), **options)


def test_the_limit_falls_as_noise_grows():
    # What the level of a calibrated z rests on, over steps finer than a search's last.
    z = np.concatenate([np.linspace(0.8, 2.0, 7), 1.3 * (1 + 3e-4 * np.arange(7))])
    limits = {x: balls_in_bins.simulate(4, x, 2, 50_000).upper(1.0) for x in z}
    falling = [limits[x] for x in sorted(limits)]
    assert np.all(np.diff(falling) < 0)


def test_a_plan_is_calibrated_by_the_upper_limit():
    made = make(epsilon=1.0, accountant="monte_carlo")
    assert 0.999 <= made.epsilon() <= 1.0
    assert made.noise_stddev() == pytest.approx(1.5 * made.noise_multiplier)
    assert made.event() == event(4, made.noise_multiplier, 2)
    assert made.epsilon(step=4) < made.epsilon(step=5) == made.epsilon(step=8)
    text = made.explain()
    for words in (
        "Epsilon by Monte Carlo: ",
        "the upper confidence limit at level 0.99 over the accountant's own draws. By "
        "PLD: none (epochs of balls in bins have no bound but by Monte Carlo)",
        "Batches: balls_in_bins, sample rate 0.25, expected batch size 250",
    ):
        assert words in text


@pytest.mark.parametrize(
    "options,sentence",
    [
        ({}, "Monte Carlo; set privacy.accountant='monte_carlo'"),
        (
            {"relation": ONE, "accountant": "monte_carlo"},
            "REPLACE_ONE' does not fit the",
        ),
        (
            {"noise_schedule": [1, 1, 1, 1, 2, 2, 2, 2], "accountant": "monte_carlo"},
            "noise_schedule='2 levels' does not fit the sampler balls_in_bins",
        ),
        (
            {
                "sampler": sampling.poisson(1000, 50, physical_batch_size=50, seed=0),
                "accountant": "monte_carlo",
            },
            "Monte Carlo is for balls in bins alone; set privacy.accountant='pld'",
        ),
    ],
)
def test_plans_that_do_not_match_raise(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(noise_multiplier=2.0, **options)
