"""Private search: its price against the theorem, K against its law, the selection."""

import collections
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import dp_event, rdp
from dp_accounting.rdp import rdp_privacy_accountant as rdp_lib
from scipy import integrate, stats

from trustml import rng
from trustml.privacy import accounting, clipping, plan, sampling, search

RELATION = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
LAWS = {
    "logarithmic": None,
    "geometric": None,
    "truncated_negative_binomial": 0.5,
    "poisson": None,
}
TRAINING = dp_accounting.SelfComposedDpEvent(
    dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(2.0)), 200
)


def gamma_by_hand(law, mean, shape):
    """gamma of the law with this mean, by bisection on scipy's own means."""

    def mean_of(gamma):
        if law == "geometric":
            return stats.geom(gamma).mean()
        if law == "logarithmic":
            return stats.logser(1 - gamma).mean()
        return stats.nbinom(shape, gamma).mean() / (1 - gamma**shape)

    low, high = 1e-9, 1 - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_of(middle) > mean else (low, middle)
    return low


def epsilon_by_hand(z, law, mean, shape, delta):
    """Theorems 2 and 6 of Papernot and Steinke for one Gaussian release."""
    orders = np.array(rdp_lib.DEFAULT_RDP_ORDERS, float)
    one = orders / (2 * z**2)
    if law == "poisson":
        many = []
        for order, value in zip(orders, one, strict=True):
            at = math.log1p(1 / (order - 1))
            delta_at, _ = rdp_lib.compute_delta(orders, one, at)
            many.append(value + mean * delta_at + math.log(mean) / (order - 1))
    else:
        gamma = gamma_by_hand(law, mean, shape)
        term = np.min((1 - 1 / orders) * one - math.log(gamma) / orders)
        many = one + math.log(mean) / (orders - 1) + (1 + shape) * term
        many = np.minimum.accumulate(many[::-1])[::-1]  # RDP grows with the order
    return rdp_lib.compute_epsilon(orders, many, delta)[0]


@pytest.mark.parametrize("mean", [1.5, 10, 80])
@pytest.mark.parametrize("law", LAWS)
def test_epsilon_is_that_of_the_theorem_and_of_dp_accounting(law, mean):
    made = search.trials(law, mean, LAWS[law])
    got = search.epsilon(dp_accounting.GaussianDpEvent(3.0), made, 1e-5, RELATION)
    want = epsilon_by_hand(3.0, law, mean, made.shape, 1e-5)
    assert got == pytest.approx(want, rel=1e-6)
    event = dp_event.RepeatAndSelectDpEvent(TRAINING, mean, made.shape)
    assert search.event(TRAINING, made) == event
    direct = rdp.RdpAccountant(neighboring_relation=RELATION).compose(event)
    got = search.epsilon(TRAINING, made, 1e-5, RELATION)
    assert got == pytest.approx(direct.get_epsilon(1e-5), rel=1e-6)
    alone = accounting.epsilon(TRAINING, 1e-5, RELATION, "rdp")
    assert alone < got < 20 * alone


def generating(law, mean, shape):
    """Derivative of the probability generating function of K."""
    if law == "poisson":
        return lambda u: mean * np.exp(mean * (u - 1))
    gamma = gamma_by_hand(law, mean, shape)
    if law == "logarithmic":
        return lambda u: (1 - gamma) / (1 - (1 - gamma) * u) / -math.log(gamma)
    scale = shape * (1 - gamma) / (gamma**-shape - 1)
    return lambda u: scale * (1 - (1 - gamma) * u) ** (-shape - 1)


@pytest.mark.parametrize("law", LAWS)
def test_the_exact_loss_of_the_best_is_below_the_bound(law):
    """The largest of K draws of N(b, z^2): its density is G'(F(x)) f(x)."""
    z, mean, delta = 1.0, 10, 1e-3
    made = search.trials(law, mean, LAWS[law])
    slope = generating(law, mean, made.shape)
    x = np.linspace(-8, 12, 200_001)
    density = [slope(stats.norm.cdf(x, b, z)) * stats.norm.pdf(x, b, z) for b in (0, 1)]
    mass = integrate.trapezoid(density[0], x)
    assert mass == pytest.approx(1 - math.exp(-mean) * (law == "poisson"), rel=1e-6)

    def exact_delta(epsilon):
        pairs = (density, density[::-1])
        over = [np.maximum(p - math.exp(epsilon) * q, 0) for p, q in pairs]
        return max(integrate.trapezoid(o, x) for o in over)

    trial = dp_accounting.GaussianDpEvent(z)
    claimed = search.epsilon(trial, made, delta, RELATION)
    assert exact_delta(claimed) < delta
    # The best of several leaks more than one alone: the bound is not for nothing.
    alone = accounting.epsilon(trial, delta, RELATION)
    assert exact_delta(alone) > delta


def probability(law, mean, shape, k):
    if law == "poisson":
        return stats.poisson(mean).pmf(k)
    gamma = gamma_by_hand(law, mean, shape)
    if law == "geometric":
        return stats.geom(gamma).pmf(k)
    if law == "logarithmic":
        return stats.logser(1 - gamma).pmf(k)
    return np.where(k > 0, stats.nbinom(shape, gamma).pmf(k) / (1 - gamma**shape), 0)


@pytest.mark.parametrize("mean", [2, 10])
@pytest.mark.parametrize(
    ("law", "shape"), [*LAWS.items(), ("truncated_negative_binomial", 7.0)]
)
def test_the_number_of_trials_follows_its_law(law, shape, mean):
    """Chi-square over cells of 20 draws or more; p > 1e-3, the seed is fixed."""
    made = search.trials(law, mean, shape)
    generator, n = np.random.default_rng(1), 20_000
    drawn = np.array([made.draw(generator) for _ in range(n)])
    k = np.arange(2000)
    want = n * probability(law, mean, made.shape, k)
    assert drawn.min() >= (law != "poisson") and want.sum() == pytest.approx(n)
    found = np.bincount(drawn, minlength=2000)[:2000]
    ordinary = want >= 20
    cells = [*zip(found[ordinary], want[ordinary], strict=True)]
    cells.append((found[~ordinary].sum(), want[~ordinary].sum()))
    statistic = sum((f - w) ** 2 / w for f, w in cells if w)
    assert stats.chi2(len(cells) - 1).sf(statistic) > 1e-3


def make_plan(sampler="poisson", relation="add_or_remove_one"):
    clipper = clipping.clipped_grad(lambda p, e, k: 0.0, l2_clip_norm=1.0)
    draw = getattr(sampling, sampler)(1000, 50, physical_batch_size=50, seed=0)
    numbers = {"steps": 200, "delta": 1e-5, "noise_multiplier": 2.0}
    return plan.make(clipper, draw, relation=relation, **numbers)


def test_a_private_score_is_paid_for():
    made, law = make_plan(), search.trials("logarithmic", 10)
    price = search.epsilon(made.event(), law, 1e-5, RELATION)
    public = search.make(made, law, score="public")
    assert public.epsilon() == price and public.score_stddev == 0
    # Records of their own: the larger of two searches, whichever it is.
    for stddev, larger in ((30.0, "training"), (1.0, "validation")):
        split = search.make(made, law, score="validation", score_stddev=stddev)
        count = dp_accounting.GaussianDpEvent(stddev)
        other = search.epsilon(count, law, 1e-5, RELATION)
        assert split.epsilon() == max(price, other)
        assert (other > price) == (larger == "validation")
        assert set(split.events) == {"training", "validation"}
    # The same records: both are released in one trial.
    same = search.make(made, law, score="training", score_stddev=10.0)
    both = dp_accounting.ComposedDpEvent(
        [made.event(), dp_accounting.GaussianDpEvent(10.0)]
    )
    want = search.epsilon(both, law, 1e-5, RELATION)
    assert same.epsilon() == want > price
    assert same.epsilon(1e-3) < same.epsilon()
    text = same.explain()
    assert f"({want:.4g}, 1e-05)" in text and f"would cost {price:.4g}" in text
    assert "costs nothing" in public.explain()
    assert f"validated on: {other:.4g}" in split.explain()


def test_the_best_of_random_candidates_is_returned():
    law = search.trials("geometric", 6)
    made = search.make(make_plan(), law, score="public")
    chosen, counts = collections.Counter(), []
    for seed in range(200):
        seen = []

        def trial(candidate, number, seen=seen):
            assert number == len(seen)
            seen.append((candidate, (7 * number) % 5))
            return f"model {number}", seen[-1][1]

        best = search.run(made, "abc", trial, rng.root(seed))
        at = max(range(len(seen)), key=lambda i: seen[i][1])
        assert best == search.Best(seen[at][0], f"model {at}", seen[at][1])
        counts.append(len(seen))
        chosen.update(c for c, _ in seen)
    # Means of 200 geometric draws of stddev sqrt(30); five standard errors.
    assert abs(np.mean(counts) - 6) < 5 * math.sqrt(30 / 200)
    total = sum(counts)
    assert all(abs(chosen[c] - total / 3) < 5 * math.sqrt(total * 2 / 9) for c in "abc")
    again = search.run(made, "abc", lambda c, n: (c, 1.0), rng.root(3))
    assert again == search.run(made, "abc", lambda c, n: (c, 1.0), rng.root(3))


def test_scores_carry_their_noise():
    law = search.trials("geometric", 1.0001)  # one trial, nearly always
    made = search.make(make_plan(), law, score="validation", score_stddev=4.0)
    scores = [
        search.run(made, [0], lambda c, n: (None, 50), rng.root(seed)).score
        for seed in range(300)
    ]
    assert abs(np.mean(scores) - 50) < 5 * 4 / math.sqrt(300)
    assert abs(np.std(scores) / 4 - 1) < 5 / math.sqrt(600)


def test_no_trial_at_all_releases_nothing():
    law = search.trials("poisson", 1.01)
    made = search.make(make_plan(), law, score="public")
    found = [search.run(made, [1], lambda c, n: (c, n), rng.root(s)) for s in range(40)]
    assert None in found and len(set(found)) > 1


WRONG = [
    (lambda: search.trials("fixed", 10), "trials.law='fixed' is not one of .* a fixed"),
    (lambda: search.trials("uniform", 10), "trials.law='uniform' is not one of"),
    (lambda: search.trials("geometric", 1.0), "trials.mean=1.0 must be above 1"),
    (lambda: search.trials("poisson", 1e4), "trials.mean=10000.0 must be .* 1000"),
    (lambda: search.trials("geometric", 5, 2.0), "trials.shape=2.0 has no effect"),
    (lambda: search.trials("truncated_negative_binomial", 5), "trials.shape=None"),
    (
        lambda: search.make(make_plan(), TEN, score="validation"),
        "score_stddev=None must be .* validation records without noise has no bound",
    ),
    (
        lambda: search.make(make_plan(), TEN, score="public", score_stddev=1.0),
        "score_stddev=1.0 has no effect",
    ),
    (lambda: search.make(make_plan(), TEN, score="test"), "score='test' is not one of"),
    (
        lambda: search.make(
            make_plan(relation="replace_one"), TEN, score="public"
        ).epsilon(),
        "has no RDP bound: the RDP accountant has no Poisson sampling",
    ),
    (
        lambda: search.run(
            search.make(make_plan(), TEN, score="public"), [], print, rng.root(0)
        ),
        r"candidates=\[\] must not be empty",
    ),
    (
        lambda: search.run(
            search.make(make_plan(), TEN, score="public"),
            [1],
            lambda c, n: (c, float("nan")),
            rng.root(0),
        ),
        "score=nan must be finite",
    ),
]
TEN = search.trials("geometric", 10)


@pytest.mark.parametrize(("call", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_searches_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
