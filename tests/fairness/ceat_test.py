"""CEAT against a NumPy loop at equal draws; what its interval and p do."""

import jax
import numpy as np
import pytest
from scipy import stats

from trustml.fairness import ceat, random_effects


def _lists(seed=0, sizes=(6, 5, 4, 7), contexts=8, width=12, between=1.0):
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=width)
    return [
        (
            between * rng.normal(size=(k, 1, width))
            + rng.normal(size=(k, contexts, width))
            + shift * direction
        ).astype(np.float32)
        for k, shift in zip(sizes, (0.3, -0.3, 0.5, -0.5), strict=True)
    ]


def _effects(lists, at_targets, at_attributes):
    """d and the variance of s, draw by draw, from the vectors themselves."""
    nx, na = len(lists[0]), len(lists[2])
    width = lists[0].shape[-1]
    u = np.concatenate(lists[:2]).astype(float).reshape(-1, width)
    v = np.concatenate(lists[2:]).astype(float).reshape(-1, width)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    d, variance = [], []
    for i, j in zip(np.asarray(at_targets), np.asarray(at_attributes), strict=True):
        cosines = u[i] @ v[j].T
        s = cosines[:, :na].mean(1) - cosines[:, na:].mean(1)
        d.append((s[:nx].mean() - s[nx:].mean()) / s.std(ddof=1))
        variance.append(s.var(ddof=1))
    return np.array(d), np.array(variance)


def _combine(d, v):
    """The formulas as they are usually written, float64."""
    w = 1 / v
    q = (w * d**2).sum() - (w * d).sum() ** 2 / w.sum()
    c = w.sum() - (w**2).sum() / w.sum()
    tau = max(0.0, (q - (len(d) - 1)) / c)
    u = 1 / (v + tau)
    return (u * d).sum() / u.sum(), tau, u.sum() ** -0.5


def _same(found, d, v, rtol=1e-5):
    ces, tau, error = _combine(d, v)
    np.testing.assert_allclose(found.ces, ces, rtol=rtol)
    np.testing.assert_allclose(found.tau_squared, tau, rtol=rtol)
    np.testing.assert_allclose(found.standard_error, error, rtol=rtol)
    np.testing.assert_allclose(found.z, ces / error, rtol=2 * rtol)


@pytest.mark.parametrize("variance", ceat.VARIANCES)
def test_equals_a_loop_at_equal_draws(variance):
    lists, key = _lists(), jax.random.key(0)
    pool = jax.jit(ceat.table)(*lists)
    found = jax.jit(lambda k, p: ceat.ceat(k, p, draws=400, variance=variance))(
        key, pool
    )
    d, v = _effects(lists, *ceat.draw(jax.random.key(0), pool, 400))
    if variance == "d":
        v = 11 / 30 + d**2 / 22
    np.testing.assert_allclose(found.effects, d, atol=2e-6)
    np.testing.assert_allclose(found.variances, v, rtol=2e-5)
    _same(found, d, v)


@pytest.mark.slow
def test_the_size_of_the_paper():
    lists = _lists(1, (25, 25, 25, 25), 50, 768)
    key = jax.random.key(0)
    pool = jax.jit(ceat.table)(*lists)
    found = jax.jit(ceat.ceat)(key, pool)
    d, v = _effects(lists, *ceat.draw(jax.random.key(0), pool, 10_000))
    _same(found, d, v)


def test_draws_take_every_context_of_a_word_alike_and_none_beyond_its_count():
    lists = _lists()
    rng = np.random.default_rng(2)
    counts = tuple(rng.integers(1, 9, len(v)).astype(np.int32) for v in lists)
    wild = [v.copy() for v in lists]
    for v, count in zip(wild, counts, strict=True):
        for word, c in zip(v, count, strict=True):
            word[c:] = np.nan
    pool = ceat.table(*wild, counts)
    rows, columns = (np.asarray(x) for x in ceat.draw(jax.random.key(3), pool, 4000))
    for at, some in ((rows, counts[:2]), (columns, counts[2:])):
        for word, count in enumerate(np.concatenate(some)):
            seen = np.bincount(at[:, word] - 8 * word, minlength=8)
            assert seen[count:].sum() == 0
            # Five binomial standard errors around 4000 / count.
            spread = 5 * np.sqrt(4000 / count * (1 - 1 / count))
            assert np.all(abs(seen[:count] - 4000 / count) <= spread)
    found = ceat.ceat(jax.random.key(3), pool, draws=200)
    assert found.n_undefined == 0 and np.isfinite(found.ces)
    again = ceat.cluster_bootstrap(jax.random.key(3), pool, replicates=5, draws=50)
    assert np.isfinite(again).all()  # no replicate read a context that is not there


def test_alternatives():
    pool = ceat.table(*_lists(3))

    def run(side):
        return ceat.ceat(jax.random.key(0), pool, draws=3, alternative=side)

    one, two = run("greater"), run("two-sided")
    np.testing.assert_allclose(one.p, stats.norm.sf(one.z), rtol=1e-3)
    np.testing.assert_allclose(two.p, 2 * stats.norm.sf(abs(one.z)), rtol=1e-3)


def test_random_effects():
    rng = np.random.default_rng(4)
    v = rng.uniform(0.01, 0.2, 500)
    d = 0.3 + rng.normal(size=500) * np.sqrt(v + 0.04)
    found = random_effects.combine(d.astype(np.float32), v.astype(np.float32))
    want = _combine(d, v)
    np.testing.assert_allclose(found[:3], want, rtol=1e-5)
    # Without variance between them tau is 0, cut there.
    even = random_effects.combine(np.full(9, 0.5, np.float32), np.ones(9, np.float32))
    np.testing.assert_allclose(even[:3], (0.5, 0.0, 1 / 3), rtol=1e-6)
    bad = np.array([0.1, np.nan, 0.3, 0.2, 0.4], np.float32)
    found = random_effects.combine(bad, np.array([1.0, 1.0, 0.0, 2.0, 1.0], np.float32))
    want = _combine(np.array([0.1, 0.2, 0.4]), np.array([1.0, 2.0, 1.0]))
    np.testing.assert_allclose(found[:3], want, rtol=1e-6)
    assert found.n_left_out == 2
    assert np.isnan(random_effects.combine(bad[:1], bad[:1]).mean)


def test_a_draw_whose_scores_are_all_equal_has_no_effect_size():
    same = np.ones((2, 1, 3), np.float32)
    found = ceat.ceat(jax.random.key(0), ceat.table(same, same, same, same), draws=4)
    assert found.n_undefined == 4 and np.isnan(found.ces) and np.isnan(found.p)


def test_the_interval_does_not_shrink_with_draws_but_p_does():
    lists = _lists(5, (10, 10, 10, 10), 15, 20)
    pool = ceat.table(*lists)

    def width(draws):
        run = jax.jit(
            lambda k, p: ceat.cluster_bootstrap(k, p, replicates=300, draws=draws)
        )
        found = run(jax.random.key(0), pool)
        return np.diff(np.quantile(np.asarray(found), [0.025, 0.975]))[0]

    def z(draws):
        return float(ceat.ceat(jax.random.key(0), pool, draws=draws).z)

    few, many = width(100), width(1000)
    # The ends of 300 replicates have a standard error near 8% of the width each way;
    # sqrt(10) would be the shrinking of an interval that follows the draws.
    assert 0.8 < few / many < 1.25
    assert 2.5 < z(1000) / z(100) < 4.0  # sqrt(10) = 3.2


def test_the_bootstrap_follows_words_and_contexts():
    """Noise between words must show in the interval, though draws are many."""
    key, widths = jax.random.key(0), {}
    for between in (0.0, 2.0):
        pool = ceat.table(*_lists(6, (8, 8, 8, 8), 40, 20, between))
        run = jax.jit(
            lambda k, p: ceat.cluster_bootstrap(k, p, replicates=200, draws=100)
        )
        found = np.asarray(run(key, pool))
        widths[between] = found.std()
    assert widths[2.0] > 1.5 * widths[0.0]


def test_summary_and_errors():
    lists = _lists()
    pool = ceat.table(*lists)
    point = ceat.ceat(jax.random.key(0), pool, draws=100)
    found = ceat.summarise(point, np.append(np.linspace(0, 1, 101), np.nan))
    assert (found.lo, found.hi, found.n_undefined) == pytest.approx((0.025, 0.975, 1))
    assert found.ces == float(point.ces) and found.details["draws"] == 100
    with pytest.raises(ValueError, match="collect more words"):
        ceat.summarise(point, np.full(10, np.nan))
    with pytest.raises(ValueError, match="b has shape"):
        ceat.table(*lists[:3], lists[3][:1])
    with pytest.raises(ValueError, match=r"must lie in 1\.\.8"):
        ceat.table(*lists, tuple(np.zeros(len(v), np.int32) for v in lists))
    with pytest.raises(ValueError, match="draws=1 must be >= 2"):
        ceat.ceat(jax.random.key(0), pool, draws=1)
    with pytest.raises(ValueError, match="is not one of assoc, d"):
        ceat.ceat(jax.random.key(0), pool, variance="s")


def test_no_second_compilation():
    pool, traces = ceat.table(*_lists()), []

    @jax.jit
    def run(key, pool):
        traces.append(None)
        return ceat.ceat(key, pool, draws=10).ces

    run(jax.random.key(0), pool)
    run(jax.random.key(1), ceat.table(*_lists(9)))
    assert len(traces) == 1
