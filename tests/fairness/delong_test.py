"""DeLong's variance against the kernel matrix, and against areas drawn anew."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from trustml.fairness import delong


def oracle(scores, label):
    """All pairs of a positive and a negative, ties half."""
    pos, neg = np.flatnonzero(label), np.flatnonzero(~label)
    kernels = []
    for s in scores:
        a, b = s[pos][:, None], s[neg][None]
        kernels.append((a > b) + 0.5 * (a == b))
    v10 = np.array([k.mean(axis=1) for k in kernels])
    v01 = np.array([k.mean(axis=0) for k in kernels])
    cov = np.cov(v10) / len(pos) + np.cov(v01) / len(neg)
    return np.array([k.mean() for k in kernels]), cov


def made(rng, n, rounded=True):
    label = rng.random(n) < 0.3
    first = rng.normal(size=n) + label
    scores = np.stack([first, first + rng.normal(size=n), -first])
    return (np.round(scores) if rounded else scores).astype(np.float32), label


def test_areas_equal_the_kernel_matrix_with_ties():
    rng = np.random.default_rng(0)
    run = jax.jit(delong.areas)
    for rounded in (True, False):
        scores, label = made(rng, 200, rounded)
        found = run(jnp.asarray(scores), jnp.asarray(label))
        auc, cov = oracle(scores, label)
        np.testing.assert_allclose(found.auc, auc, atol=1e-6)
        np.testing.assert_allclose(found.covariance, cov, atol=1e-8)
        peer = [metrics.roc_auc_score(label, s) for s in scores]
        np.testing.assert_allclose(found.auc, peer, atol=1e-6)


def test_rows_that_are_masked_change_nothing():
    scores, label = made(np.random.default_rng(1), 100)
    used = np.arange(100) < 80
    scores[:, 80:] = np.nan
    found = delong.areas(*map(jnp.asarray, (scores, label, used)))
    auc, cov = oracle(scores[:, :80], label[:80])
    np.testing.assert_allclose(found.auc, auc, atol=1e-6)
    np.testing.assert_allclose(found.covariance, cov, atol=1e-8)


def test_intervals_and_differences_are_those_of_areas_drawn_anew():
    """Over 400 draws; a share of 0.95 has deviation 0.011."""
    rng, run = np.random.default_rng(2), jax.jit(delong.areas)
    drawn, variances, held, apart = [], [], [], []
    # By a large sample: the two areas that are estimated.
    scores, label = made(rng, 200_000, rounded=False)
    true = [metrics.roc_auc_score(label, s) for s in scores[:2]]
    for _ in range(400):
        scores, label = made(rng, 150, rounded=False)
        found = jax.device_get(run(jnp.asarray(scores), jnp.asarray(label)))
        drawn.append(found.auc)
        variances.append(np.diag(found.covariance))
        one = delong.interval(found.auc[0], found.covariance[0, 0])
        held.append(one.lo < true[0] < one.hi)
        two = delong.difference(found, 0, 1)
        apart.append(two.lo < true[0] - true[1] < two.hi)
    # The variance of a variance over 400 draws: about sqrt(2 / 400) = 7%.
    ratio = np.mean(variances, axis=0) / np.var(drawn, axis=0, ddof=1)
    assert np.all(np.abs(ratio - 1) < 0.3)
    assert abs(np.mean(held) - 0.95) < 0.035 and abs(np.mean(apart) - 0.95) < 0.035


def test_what_has_no_variance_has_no_interval():
    label = jnp.array([0, 0, 1, 1])
    found = delong.areas(jnp.array([[0.0, 1, 2, 3], [0, 2, 1, 3]]), label)
    assert found.auc[0] == 1 and np.isnan(delong.interval(1.0, 0.0).lo)
    assert np.isnan(delong.difference(found, 0, 0).p)
    one = delong.areas(jnp.ones((1, 3)), jnp.array([1, 0, 0]))
    assert one.auc[0] == 0.5 and np.isnan(one.covariance[0, 0])
    none = delong.areas(jnp.ones((1, 3)), jnp.array([1, 1, 1]))
    assert np.isnan(none.auc[0])
    with pytest.raises(ValueError, match="level=1.5"):
        delong.interval(0.7, 0.1, level=1.5)


def test_shares_are_no_flags():
    with pytest.raises(ValueError, match="labels='float32' are no flags"):
        delong.areas(jnp.ones((1, 3)), jnp.array([0.0, 0.1, 0.9]))
    with pytest.raises(ValueError, match="labels=-1 is neither 0 nor 1"):
        delong.areas(jnp.ones((1, 3)), jnp.array([-1, 1, 1]))
