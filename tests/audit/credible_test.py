"""The credible interval against a quadrature in two dimensions, and under its prior."""

import math

import numpy as np
import pytest
from scipy import special, stats

from trustml.audit import credible


def tables(count):
    """Random tables of errors: sizes, and how well the attack does, of all kinds."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        n_in, n_out = generator.integers(20, 600, 2).tolist()
        fn = int(generator.binomial(n_in, generator.beta(0.5, 1.0)))
        fp = int(generator.binomial(n_out, generator.beta(0.5, 1.0)))
        yield {"fn": fn, "tp": n_in - fn, "fp": fp, "tn": n_out - fp}


def least_epsilon(x, y, delta):
    """The epsilon of one pair of rates (FNR, FPR), from the definition."""
    with np.errstate(divide="ignore"):
        ratios = [
            (1 - delta - a) / b
            for a, b in ((x, y), (y, x), (1 - x, 1 - y), (1 - y, 1 - x))
        ]
    return np.log(np.maximum(1.0, np.max(ratios, axis=0)))


def brute_force(table, delta, side):
    """Both ends by the quantiles of epsilon over a grid of equal cells."""
    u = (np.arange(side) + 0.5) / side
    x = special.betaincinv(table["fn"] + 0.5, table["tp"] + 0.5, u)
    y = special.betaincinv(table["fp"] + 0.5, table["tn"] + 0.5, u)
    found = least_epsilon(x[:, None], y[None, :], delta)
    return np.quantile(found, [0.05, 0.95])


@pytest.mark.parametrize("delta", [1e-5, 0.05])
@pytest.mark.parametrize(
    "count,side,atol",
    [(4, 500, 5e-3), pytest.param(20, 4000, 1e-3, marks=pytest.mark.slow)],
    ids=["quick", "slow"],
)
def test_the_ends_are_those_of_a_grid_in_two_dimensions(delta, count, side, atol):
    worst = 0.0
    for table in tables(count):
        ends = credible.interval(**table, delta=delta)
        apart = np.abs(np.subtract(ends, brute_force(table, delta, side)))
        worst = max(worst, float(np.max(apart)))
    print(f"\ndelta {delta:g}: {worst:.2g} apart at most")
    assert worst < atol


def by_midpoints(table, delta, epsilon, cells=20_000):
    """P(epsilon) over cells of equal mass in x, with laws of SciPy."""
    of_y = stats.beta(table["fp"] + 0.5, table["tn"] + 0.5)
    grown = math.exp(epsilon)
    u = (np.arange(cells) + 0.5) / cells
    x = special.betaincinv(table["fn"] + 0.5, table["tp"] + 0.5, u)

    def least(x):
        return np.maximum(0, np.maximum(1 - delta - grown * x, (1 - delta - x) / grown))

    inner = of_y.cdf(1 - least(1 - x)) - of_y.cdf(least(x))
    return float(np.mean(np.maximum(0, inner)))


@pytest.mark.parametrize(
    "count", [3, pytest.param(20, marks=pytest.mark.slow)], ids=["quick", "slow"]
)
def test_the_ends_are_right_to_four_digits(count):
    """The level lies between P just below the end and P just above it."""
    for table in tables(count):
        for end, level in zip(
            credible.interval(**table, delta=1e-3), (0.05, 0.95), strict=True
        ):
            assert by_midpoints(table, 1e-3, end + 1e-4) > level
            assert end == 0 or by_midpoints(table, 1e-3, end - 1e-4) < level


def test_more_nodes_change_neither_end():
    worst = 0.0
    for table in tables(20):
        options = {**table, "delta": 1e-5}
        few = credible.interval(**options, nodes=400)
        many = credible.interval(**options, nodes=3000)
        worst = max(worst, np.max(np.abs(np.subtract(few, many))))
        if table["fn"] % 4 == 0:
            np.testing.assert_allclose(credible.interval(**options), many, atol=1e-5)
    print(f"\nworst end with 400 nodes: {worst:.2g}")
    assert worst < 1e-4


def test_the_interval_holds_its_share_of_the_posterior():
    options = {"fn": 60, "tp": 440, "fp": 15, "tn": 485, "delta": 1e-5}
    share = credible.posterior(**options)
    lo, hi = credible.interval(**options, alpha=0.2)
    assert share(lo) == pytest.approx(0.1, abs=1e-8)
    assert share(hi) == pytest.approx(0.9, abs=1e-8)
    assert 0 < lo < math.log(440 / 15) < hi
    grid = [share(e) for e in np.linspace(0, 10, 101)]
    assert np.all(np.diff(grid) >= -1e-12) and grid[-1] == pytest.approx(1, abs=1e-6)


def test_nothing_found_and_everything_found():
    none = credible.interval(fn=250, tp=250, fp=250, tn=250, delta=0.3)
    assert none[0] == 0.0
    lo, hi = credible.interval(fn=0, tp=500, fp=0, tn=500, delta=0.0)
    assert 5 < lo < hi < math.inf


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_it_covers_under_its_prior(alpha):
    """Rates from Beta(1/2, 1/2): epsilon lies between the ends in 1 - alpha of audits.

    It does where P(epsilon) lies in [alpha/2, 1 - alpha/2], P being the posterior.
    """
    generator = np.random.default_rng(4)
    trials, inside, delta, count = 500, 0, 1e-2, 200
    for x, y in generator.beta(0.5, 0.5, (trials, 2)):
        fn, fp = int(generator.binomial(count, x)), int(generator.binomial(count, y))
        table = {"fn": fn, "tp": count - fn, "fp": fp, "tn": count - fp}
        truth = float(least_epsilon(np.float64(x), np.float64(y), delta))
        at = credible.posterior(**table, delta=delta, nodes=400)(truth)
        inside += alpha / 2 <= at <= 1 - alpha / 2 or (truth == 0 and at >= alpha / 2)
    # 5 standard errors.
    assert abs(inside / trials - (1 - alpha)) < 5 * math.sqrt(
        alpha * (1 - alpha) / trials
    )


def test_a_result_is_credible_and_says_so():
    inside, outside = np.r_[np.ones(80), np.zeros(20)], np.r_[np.ones(5), np.zeros(95)]
    found = credible.joint_beta(inside, outside, threshold=0.5, delta=1e-5, alpha=0.1)
    ends = credible.interval(fn=20, tp=80, fp=5, tn=95, delta=1e-5, alpha=0.1)
    assert (found.epsilon, found.epsilon_hi) == ends and found.kind == "credible"
    assert "prior" in found.assumption and found.strategy == "fixed"
    assert found.epsilon < found.epsilon_ceiling


BAD = [
    ("count", lambda: credible.interval(fn=-1, tp=1, fp=1, tn=1, delta=0.1), "fn=-1"),
    ("delta", lambda: credible.interval(fn=1, tp=1, fp=1, tn=1, delta=1.0), "delta=1"),
    ("nan", lambda: credible.joint_beta([np.nan], [1], threshold=0, delta=0.1), "nan"),
    ("nowhere", lambda: credible.joint_beta([1.0], [1.0], threshold=np.inf, delta=0.1),
     "threshold=inf"),
]  # fmt: skip


@pytest.mark.parametrize("name,call,sentence", BAD, ids=[b[0] for b in BAD])
def test_bad_arguments_get_a_sentence(name, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
