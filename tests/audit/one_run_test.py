"""One run's bounds against closed forms, published figures and exact probabilities."""

import math

import numpy as np
import pytest
from scipy import stats

from trustml.audit import one_run, rates, result

PUBLISHED = [
    # Steinke et al. 2023, appendix D (p. 46) and section 7 (p. 28, truncated).
    ((75, 100, 1000), {"delta": 1e-4, "alpha": 0.05}, 0.673),
    ((1439, 1510, 100_000), {"delta": 1e-5, "alpha": 0.05}, 2.675),
]


@pytest.mark.parametrize("counts,options,want", PUBLISHED)
def test_one_run_gives_the_published_figures(counts, options, want):
    got = one_run.epsilon_of_counts(*counts, **options)
    assert got == pytest.approx(want, abs=1e-3)


def p_values(guesses, canaries, epsilon, delta):
    return [
        one_run._p_value(v, guesses, canaries, epsilon, delta)
        for v in range(guesses + 1)
    ]


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 1e-2])
def test_no_mechanism_beats_the_one_run_p_value(epsilon, delta):
    """Three (epsilon, delta)-DP mechanisms of n bits, exact probabilities.

    Randomised response on every bit; the same, each bit revealed with probability
    delta; the same, all of them revealed at once with probability delta.
    """
    count, rate = 60, 1 / (1 + math.exp(-epsilon))
    bound = np.array(p_values(count, count, epsilon, delta))
    v = np.arange(count + 1)
    response = stats.binom.sf(v - 1, count, rate)
    each = stats.binom.sf(v - 1, count, delta + (1 - delta) * rate)
    at_once = delta + (1 - delta) * response
    for law in (response, each, at_once):
        assert np.all(law <= bound * (1 + 1e-9) + 1e-12)
    if delta == 0:
        np.testing.assert_allclose(bound, response, rtol=1e-9)
    else:  # without its second term the bound would be broken
        assert np.any(each > response * (1 + 1e-6))


def test_epsilon_is_where_the_p_value_crosses():
    bound = one_run.epsilon_of_counts(80, 100, 500, delta=1e-5, alpha=0.01)
    below, above = (
        one_run._p_value(80, 100, 500, bound + step, 1e-5) for step in (-1e-6, 1e-6)
    )
    assert below < 0.01 <= above
    level = {"delta": 1e-5, "alpha": 0.01}
    assert one_run.epsilon_of_counts(50, 100, 500, **level) == 0
    assert one_run.epsilon_of_counts(0, 10, 500, **level) == 0


@pytest.mark.parametrize("guesses", [1, 10, 100, 2000])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_all_right_without_delta_has_a_closed_form(guesses, alpha):
    found = one_run.epsilon_of_counts(guesses, guesses, 4000, delta=0.0, alpha=alpha)
    want = max(0.0, -math.log(alpha ** (-1 / guesses) - 1)) if guesses > 1 else 0.0
    assert found == pytest.approx(want, rel=1e-8)


@pytest.mark.parametrize("delta", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("alpha", [0.05, 0.5])
def test_the_first_crossing_counts(delta, alpha):
    """2 m delta is 0.2, 2 and 20: above 1 no argument says that p is monotone."""
    case = (95, 100, 1000)
    grid = np.linspace(0, 3, 601)
    p = np.array([one_run._p_value(*case, e, delta) for e in grid])
    first = grid[np.argmax(p >= alpha)]
    found = one_run.epsilon_of_counts(*case, delta=delta, alpha=alpha)
    assert found == 0 if first == 0 else first - 0.005 <= found <= first


def test_guesses_are_made_at_both_ends():
    included = np.array([True, False, True, False, True, False])
    scores = [6, 1, 5, 2, 3, 4]
    assert one_run.guess(scores, included, (2, 2)) == 4
    assert one_run.guess(scores, included, (3, 3)) == 4
    assert one_run.guess([1, 6, 2, 5, 3, 4], included, (2, 2)) == 0
    assert one_run.guess(scores, included, (2, 0)) == 2
    assert one_run.guess(scores, included, (0, 6)) == 3


def test_ties_are_broken_without_regard_to_the_coins():
    included = np.arange(1000) < 500
    right = [
        one_run.guess(np.zeros(1000), included, (50, 50), seed=s) for s in range(40)
    ]
    # 4,000 fair guesses: 5 standard errors.
    assert abs(np.sum(right) - 2000) < 158


def loop(v, g, m, alpha, mu):
    """Algorithm 3 of Mahloujifar et al., with an array for every quantity."""
    right, wrong = np.zeros(v + 1), np.zeros(v + 1)
    right[v], wrong[v] = alpha * v / m, alpha * (g - v) / m
    for i in range(v - 1, -1, -1):
        back = stats.norm.cdf(stats.norm.ppf(min(1.0, right[i + 1])) - mu)
        wrong[i] = max(wrong[i + 1], back)
        right[i] = right[i + 1] + i / (g - i) * (wrong[i] - wrong[i + 1])
    return right[0] + wrong[0] > g / m


@pytest.mark.parametrize("counts", [(45, 50, 500), (30, 50, 500), (90, 100, 100)])
@pytest.mark.parametrize("alpha", [0.01, 0.2])
def test_mu_is_the_edge_of_what_is_rejected(counts, alpha):
    found = one_run.mu_of_counts(*counts, alpha=alpha)
    if found == 0:
        assert not loop(*counts, alpha, 0.0)
    else:
        assert loop(*counts, alpha, found - 1e-6)
        assert not loop(*counts, alpha, found + 1e-6)
    more = one_run.mu_of_counts(counts[0] + 1, *counts[1:], alpha=alpha)
    assert more >= found


def test_no_gaussian_is_rejected_more_often_than_alpha():
    """Exact: the law of right guesses at mu = 1, where every canary is guessed at."""
    count, mu = 80, 1.0
    rate = stats.norm.cdf(mu / 2)  # of one canary, threshold mu/2
    for alpha in (0.05, 0.2):
        found = [
            one_run.mu_of_counts(v, count, count, alpha=alpha) for v in range(count + 1)
        ]
        law = stats.binom.pmf(np.arange(count + 1), count, rate)
        assert np.sum(law[np.array(found) > mu]) <= alpha


def run(mu, seed=0, count=500):
    generator = np.random.default_rng(seed)
    coins = generator.random(count) < 0.5
    return generator.normal(mu * coins, 1.0), coins


def test_results_say_what_they_rest_on():
    scores, coins = run(2.0)
    options = {"delta": 1e-5, "alpha": 0.05}
    one = one_run.epsilon_delta(scores, coins, guesses=(30, 20), **options)
    right = one_run.guess(scores, coins, (30, 20))
    assert one.epsilon == one_run.epsilon_of_counts(right, 50, 500, **options) > 0
    assert one.strategy == "fixed, 30 guessed in and 20 out"
    assert (one.n_in, one.n_out) == (coins.sum(), 500 - coins.sum())
    assert one.confidence == 0.95 and one.kind == "confidence"
    assert "coin" in one.assumption and "Gaussian" not in one.assumption
    assert one.epsilon_ceiling == one_run.epsilon_of_counts(50, 50, 500, **options)
    other = one_run.gaussian(scores, coins, guesses=(30, 20), **options)
    mu = one_run.mu_of_counts(right, 50, 500, alpha=0.05)
    assert other.epsilon == rates.gaussian_epsilon(mu, 1e-5)
    assert "Gaussian" in other.assumption
    perfect = one_run.epsilon_delta(
        coins * 1.0, coins, guesses=(25, 25), delta=0.0, alpha=0.05
    )
    assert perfect.warnings == (result.SATURATED,)


def test_a_grid_of_guesses_is_paid_for():
    scores, coins = run(2.0)
    grid = [(10, 10), (25, 25), (60, 60), (100, 100)]
    options = {"delta": 1e-5, "alpha": 0.05}
    paid = one_run.epsilon_delta(
        scores, coins, guesses=grid, strategy="bonferroni", **options
    )
    each = [
        one_run.epsilon_delta(scores, coins, guesses=g, delta=1e-5, alpha=0.0125)
        for g in grid
    ]
    assert paid.epsilon == max(x.epsilon for x in each) and paid.confidence == 0.95
    halved = one_run.epsilon_delta(
        scores, coins, guesses=grid, strategy="split", **options
    )
    assert halved.n_in + halved.n_out == 250
    # What chooses does not see the half that counts: scores there may be anything.
    shuffled = np.random.default_rng(0).permutation(500)
    spoilt = np.array(scores)
    spoilt[shuffled[250:]] = 0.0
    again = one_run.epsilon_delta(
        spoilt, coins, guesses=grid, strategy="split", **options
    )
    assert again.strategy == halved.strategy and again.epsilon < halved.epsilon


OPTIONS = {"guesses": (2, 2), "delta": 1e-5}
FAIR = np.arange(40) % 2 == 0
X = np.arange(40.0)
BAD = [
    ("no_coins", lambda: one_run.epsilon_delta(X, None, **OPTIONS), "is missing"),
    (
        "coins_all_in",
        lambda: one_run.gaussian(X, np.ones(40, bool), **OPTIONS),
        "40 of 40 in.*no fair coins",
    ),
    (
        "coins_mostly_out",
        lambda: one_run.epsilon_delta(X, np.arange(40) < 8, **OPTIONS),
        "8 of 40 in.*no fair coins",
    ),
    (
        "coins_of_another_run",
        lambda: one_run.epsilon_delta(X, FAIR[:30], **OPTIONS),
        "one for each score",
    ),
    (
        "nan",
        lambda: one_run.epsilon_delta(np.full(40, np.nan), FAIR, **OPTIONS),
        "is nan",
    ),
    (
        "best_of_a_grid",
        lambda: one_run.epsilon_delta(
            X, FAIR, guesses=[(2, 2), (4, 4)], delta=1e-5, strategy="fixed"
        ),
        "'split' or 'bonferroni'",
    ),
    (
        "one_pair_to_split",
        lambda: one_run.gaussian(X, FAIR, strategy="split", **OPTIONS),
        "does not go with strategy='split'",
    ),
    (
        "empty_grid",
        lambda: one_run.gaussian(X, FAIR, guesses=[], delta=0.1, strategy="split"),
        "guesses",
    ),
    (
        "unknown_strategy",
        lambda: one_run.gaussian(X, FAIR, strategy="best", **OPTIONS),
        "strategy='best'",
    ),
    (
        "too_many_guesses",
        lambda: one_run.epsilon_delta(X, FAIR, guesses=(30, 20), delta=1e-5),
        "at most the 40 canaries",
    ),
    (
        "gaussian_without_delta",
        lambda: one_run.gaussian(X, FAIR, guesses=(2, 2), delta=0.0),
        "delta=0.0",
    ),
    (
        "more_right_than_guessed",
        lambda: one_run.epsilon_of_counts(5, 4, 10, delta=1e-5, alpha=0.1),
        "correct=5",
    ),
    (
        "delta_of_1",
        lambda: one_run.epsilon_of_counts(3, 4, 10, delta=1.0, alpha=0.1),
        "delta=1.0",
    ),
]


@pytest.mark.parametrize("name,call,sentence", BAD, ids=[b[0] for b in BAD])
def test_bad_arguments_get_a_sentence(name, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_coins_that_may_be_fair_pass():
    """13 of 40 has a two-sided p of 0.038; 9 of 40 of 0.0007."""
    one_run.check_coins(X, np.arange(40) < 13)
    with pytest.raises(ValueError, match="no fair coins"):
        one_run.check_coins(X, np.arange(40) < 9)


@pytest.mark.parametrize("coins", [np.ones(10, bool), np.zeros(10, bool)])
def test_canaries_of_one_side_say_nothing(coins):
    with pytest.raises(ValueError, match="coins='all (in|out)' leaves nothing"):
        one_run.epsilon_delta(np.zeros(10), coins, guesses=(10, 0), delta=1e-5)


def test_ties_are_not_ordered_by_what_may_have_drawn_the_coins():
    order = np.random.default_rng(0).permutation(1000)
    coins = np.zeros(1000, bool)
    coins[order[500:]] = True
    right = one_run.guess(np.zeros(1000), coins, (50, 50), seed=0)
    assert 30 < right < 70  # 50 +- 5 by chance; 100 of 100 with the same stream
