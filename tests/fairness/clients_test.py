"""Fairness over clients: definitions written out, planted spread, Simpson."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from trustml.fairness import clients, counts, gaps


def test_figures_by_their_definitions():
    rng = np.random.default_rng(0)
    n = rng.integers(1, 30, 37)
    c = rng.binomial(n, rng.beta(6, 3, 37))
    a = c / n
    found = clients.measure(np.append(c, 0), np.append(n, 0))
    assert found.clients == 37, "a client without examples has no accuracy"
    m = len(a)
    pairs = sum(abs(x - y) for x in a for y in a)
    assert found.gini.value == pytest.approx(pairs / (2 * m * m * a.mean()))
    assert found.jain.value == pytest.approx(sum(a) ** 2 / (m * sum(x * x for x in a)))
    assert found.variance.value == pytest.approx(np.mean((a - a.mean()) ** 2))
    assert found.worst_decile.value == pytest.approx(np.mean(sorted(a)[:3]))
    assert np.isnan(found.shrunk[-1])
    for one in (found.mean, found.variance, found.worst_decile, found.gini, found.jain):
        assert one.lo < one.hi and one.lo <= one.value <= one.hi


def test_even_and_most_uneven():
    even = clients.measure([4] * 20, [8] * 20)
    assert even.jain.value == pytest.approx(1) and even.gini.value == pytest.approx(0)
    alone = np.array([0.0] * 9 + [1.0])
    assert clients.jain(alone) == pytest.approx(0.1)
    assert clients.gini(alone) == pytest.approx(0.9)
    nobody = np.zeros(5)
    assert clients.jain(nobody) == 1.0 and clients.gini(nobody) == 0.0
    assert clients.worst_decile(np.array([0.5])) == 0.5


def test_luck_is_told_from_truth():
    """3,000 clients of 1 to 19 examples, once alike and once from Beta(8, 2)."""
    rng = np.random.default_rng(1)
    n = rng.integers(1, 20, 3000)
    alike = clients.measure(rng.binomial(n, 0.8), n, replicates=100)
    # Luck alone: .8 * .2 * mean of 1/n = .16 * .187 = .030.
    assert alike.variance.value > 0.025 and alike.true_variance < 0.002
    p = rng.beta(8, 2, 3000)
    truly = clients.measure(rng.binomial(n, p), n, replicates=100)
    # Beta(8, 2): mean .8, variance .8 * .2 / 11 = .01455. Over 60 such worlds the
    # standard deviations of the estimates were .0031 and .0008: four of them.
    assert truly.m == pytest.approx(0.8, abs=0.0125)
    assert truly.true_variance == pytest.approx(0.01455, abs=0.0032)
    raw = np.mean((truly.shrunk - p) ** 2), np.mean((rng.binomial(n, p) / n - p) ** 2)
    assert raw[0] < raw[1] / 2, "shrunk accuracies are closer to the truth"
    inside = np.mean((truly.shrunk_lo <= p) & (p <= truly.shrunk_hi))
    # 3,000 intervals at 95%: sd 0.4 points.
    assert inside == pytest.approx(0.95, abs=0.016)


def test_the_fit_is_the_likeliest():
    c, n = np.array([0, 5, 9, 30]), np.array([4, 9, 10, 60])
    found = clients.measure(c, n)
    m, s = found.m, found.s
    best = stats.betabinom.logpmf(c, n, m * s, (1 - m) * s).sum()
    for other_m, other_s in ((m + 0.02, s), (m - 0.02, s), (m, s * 1.2), (m, s / 1.2)):
        law = stats.betabinom.logpmf(c, n, other_m * other_s, (1 - other_m) * other_s)
        assert law.sum() < best


@pytest.mark.parametrize(
    ("c", "n"),
    [([0, 5, 9, 30], [4, 9, 10, 60]), ([0], [7]), ([1], [1]), ([3] * 9, [4] * 9)],
)
def test_posteriors_are_those_of_a_fine_grid(c, n):
    """Means and intervals against 300 x 300 values of m and of the shrinkage."""
    c, n = np.array(c), np.array(n)
    m = (np.arange(300) + 0.5) / 300
    share = (np.arange(300) + 0.5) / 300
    m, share = (x.reshape(-1) for x in np.meshgrid(m, share))
    s = n.min() * share / (1 - share)
    log = sum(
        stats.betabinom.logpmf(x, k, m * s, (1 - m) * s)
        for x, k in zip(c, n, strict=True)
    )
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    found = clients.measure(c, n)
    for k in range(min(len(c), 2)):
        a, b = c[k] + m * s, n[k] - c[k] + (1 - m) * s
        assert found.shrunk[k] == pytest.approx(weight @ (a / (a + b)), abs=0.004)
        for end, q in ((found.shrunk_lo[k], 0.025), (found.shrunk_hi[k], 0.975)):
            below = weight @ stats.beta.cdf(end, a, b)
            if end < 1e-9:  # a law with all its weight there, as far as floats tell
                assert below > q
            elif end > 1 - 1e-9:
                assert below < q
            else:  # the grid of 17 x 17 is good to a few thousandths
                assert below == pytest.approx(q, abs=0.006)
        assert found.shrunk_lo[k] <= found.shrunk[k] <= found.shrunk_hi[k]


@pytest.mark.parametrize("p", [0.6, 0.7, 0.8, 0.9])
def test_posteriors_of_much_data_depend_little_on_where_it_lies(p):
    """The same luck everywhere; against 800 values of m around p, and 400 shares."""
    n = np.full(20, 1000.0)
    c = np.round(n * p + np.array([-1, 1] * 10) * np.sqrt(1000 * p * (1 - p)))
    logit = np.log(p / (1 - p)) + np.linspace(-0.8, 0.8, 800)
    m, share = np.meshgrid(1 / (1 + np.exp(-logit)), (np.arange(400) + 0.5) / 400)
    s = 1000 * share / (1 - share)
    a, b = m * s, (1 - m) * s
    log = np.log(m * (1 - m))
    for x in np.unique(c):
        log = log + 10 * (special.betaln(x + a, 1000 - x + b) - special.betaln(a, b))
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    found, lo, hi = clients.posterior(c, n)
    for x, shrunk in zip(c[:2], found[:2], strict=True):
        assert shrunk == pytest.approx(
            (weight * (x + a) / (1000 + a + b)).sum(), abs=2e-4
        )
    assert np.ptp(found) < 0.45 * np.ptp(c / n)


def test_one_client_says_little():
    one = clients.measure([1], [1])
    assert one.shrunk_lo[0] < 0.3 and one.shrunk_hi[0] > 0.99
    none = clients.measure([0], [7])
    assert none.shrunk_lo[0] < 0.001 < none.shrunk[0] < none.shrunk_hi[0] < 0.5


WORLDS = {
    "alike, .9": (30, lambda rng, k: np.full(k, 0.9), 20),
    "alike, .99": (30, lambda rng, k: np.full(k, 0.99), 20),
    "Beta(8, 2)": (60, lambda rng, k: rng.beta(8, 2, k), 40),
    "Beta(8, 2), 10 clients": (10, lambda rng, k: rng.beta(8, 2, k), 40),
    "Beta(.2, .2)": (30, lambda rng, k: rng.beta(0.2, 0.2, k), 40),
}


def held(name, runs, seed=0):
    """Share of posterior intervals that hold the accuracy; clients of 3 examples up."""
    k, law, most = WORLDS[name]
    rng, inside = np.random.default_rng(seed), []
    for _ in range(runs):
        p, n = law(rng, k), rng.integers(3, most, k)
        _, lo, hi = clients.posterior(rng.binomial(n, p).astype(float), n.astype(float))
        inside.append(np.mean((lo <= p) & (p <= hi)))
    return np.mean(inside)


@pytest.mark.parametrize("name", ["alike, .9", "Beta(8, 2)"])
def test_posterior_intervals_hold(name):
    """With m and s as fitted, intervals of clients that are alike held 40%."""
    # 6 worlds; the slow study gives the figures.
    assert held(name, 6) > 0.91


@pytest.mark.slow
def test_coverage_of_the_docstring():
    for name in WORLDS:
        share = held(name, 200)
        print(name, round(share, 4))
        assert 0.93 < share, name


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_all_wrong_and_all_right(rate):
    n = np.array([1, 5, 20])
    found = clients.measure(n * rate, n)
    assert found.variance.value == 0 and abs(found.m - rate) < 0.05
    assert np.all((found.shrunk >= 0) & (found.shrunk <= 1))
    assert np.all((found.shrunk_lo <= found.shrunk) & (found.shrunk <= found.shrunk_hi))
    assert np.all(found.shrunk_hi - found.shrunk_lo > 0.01), "26 examples are not all"


def test_pooled_gap_is_not_the_mean_of_gaps():
    """Two clients that select both groups alike, together they do not (Simpson)."""
    cells = np.zeros((2, 2, 2, 2), int)
    cells[0, 0, 0], cells[0, 1, 0] = (10, 90), (1, 9)  # selects 90%, group 0 mostly
    cells[1, 0, 0], cells[1, 1, 0] = (9, 1), (90, 10)  # selects 10%, group 1 mostly
    found = clients.gaps(cells, gaps.demographic_parity_difference)
    assert found.client_mean.value == pytest.approx(0, abs=1e-6)
    assert found.pooled.value == pytest.approx(91 / 110 - 19 / 110, abs=1e-6)
    assert found.undefined == 0


def test_gaps_against_a_loop():
    rng = np.random.default_rng(3)
    cells = rng.integers(0, 9, (12, 3, 2, 2))
    cells[4, 1:] = 0  # one client of a single group has no gap
    found = clients.gaps(cells, gaps.demographic_parity_difference, replicates=300)
    own = []
    for one in cells:
        rates = [g[:, 1].sum() / g.sum() for g in one if g.sum()]
        own += [max(rates) - min(rates)] if len(rates) > 1 else []
    rates = [g[:, 1].sum() / g.sum() for g in cells.sum(axis=0)]
    assert found.pooled.value == pytest.approx(max(rates) - min(rates), abs=1e-6)
    assert found.client_mean.value == pytest.approx(np.mean(own), abs=1e-6)
    assert found.undefined == 1
    for one in found[:2]:
        assert one.lo < one.hi


def test_one_client_has_no_interval():
    found = clients.measure([3, 0], [5, 0])
    assert found.mean.value == pytest.approx(0.6)
    for name in ("mean", "variance", "worst_decile", "gini", "jain"):
        one = getattr(found, name)
        assert np.isfinite(one.value) and np.isnan([one.lo, one.hi]).all()
    cells = np.array([[[[3, 1], [2, 4]], [[2, 2], [1, 5]]]])
    for more in (0, 1):  # the second client has one group, and so no gap
        added = np.concatenate([cells, cells * np.array([1, 0])[:, None, None]])
        of = clients.gaps(added[: 1 + more], lambda c: gaps.difference(c, "tpr"))
        assert of.undefined == more
        assert np.isnan([of.client_mean.lo, of.client_mean.hi]).all()
        assert of.client_mean.value == pytest.approx(5 / 6 - 4 / 6, abs=1e-6)
        assert np.isnan(of.pooled.lo) == (more == 0)


def test_cells_of_clients_come_from_vmap():
    rng = np.random.default_rng(4)
    group, label, guess = (jnp.asarray(rng.integers(0, 2, (5, 30))) for _ in range(3))
    count = jax.vmap(lambda g, y, k: counts.count(g, y, k, groups=2).cells)
    found = clients.gaps(
        count(group, label, guess), lambda c: gaps.difference(c, "tpr")
    )
    flat = counts.count(*(x.reshape(-1) for x in (group, label, guess)), groups=2)
    assert found.pooled.value == pytest.approx(
        float(gaps.difference(flat.cells, "tpr"))
    )


@pytest.mark.parametrize(
    ("correct", "examples", "sentence"),
    [
        ([1, 2], [3], "correct='array of shape .2,.' does not go with"),
        ([1, 5], [3, 4], "correct.1.=5.0 of examples.1.=4 is not a count"),
        ([0.5], [3], "correct.0.=0.5 of examples.0.=3 is not a count"),
        ([3, 2], [np.inf, 5], "correct.0.=3.0 of examples.0.=inf is not a count"),
        ([0, 0], [0, 0], "examples=0 leaves no client"),
    ],
)
def test_refusals(correct, examples, sentence):
    with pytest.raises(ValueError, match=sentence):
        clients.measure(correct, examples)


def test_gaps_refuse_other_shapes():
    with pytest.raises(
        ValueError, match="cells=0 must be >= 1; give the counts of one"
    ):
        clients.gaps(np.zeros((0, 2, 2, 2), int), gaps.demographic_parity_difference)
    with pytest.raises(ValueError, match="vmap counts.count over clients"):
        clients.gaps(np.zeros((2, 2, 2)), gaps.demographic_parity_difference)
