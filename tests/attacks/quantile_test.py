"""Quantile regression on margins whose law is known."""

import functools

import jax
import numpy as np
import pytest
from scipy import stats

from trustml.attacks import metrics, quantile


def _world(n=4000, seed=0):
    """Margin = 3 x_0 + (1 + |x_1|) noise, members 1.5 (1 + |x_1|) higher."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    member = rng.random(n) < 0.5
    spread = 1 + np.abs(x[:, 1])
    margin = 3 * x[:, 0] + spread * (rng.normal(size=n) + 1.5 * member)
    return x, margin.astype(np.float32), member


@functools.cache
def _fitted(head):
    x, margin, member = _world()
    parts = quantile.split(member)

    @jax.jit
    def run(key, x, s, held):
        return quantile.fit(key, x, s, validation=held, head=head, alpha=0.1, steps=600)

    rows = parts.fit, parts.validate
    one, other = ((x[part], margin[part]) for part in rows)
    return run(jax.random.key(0), *one, other), parts


@pytest.mark.parametrize("head", quantile.HEADS)
def test_difficulty_is_taken_out(head):
    x, margin, member = _world()
    fitted, parts = _fitted(head)
    rows = parts.evaluate
    found = quantile.score(fitted, x[rows], margin[rows])
    assert np.asarray(found.valid).all()
    value, truth = np.asarray(found.value), member[rows]
    plain = metrics.auc(margin[rows][truth], margin[rows][~truth]).value
    # Known mean and spread give Phi(1.5/sqrt 2) = .856; the margin alone .68.
    best = stats.norm.cdf(1.5 / np.sqrt(2))
    area = metrics.auc(value[truth], value[~truth]).value
    assert plain < 0.72 < area < best + 0.03
    assert area > (0.83 if head == "gaussian" else 0.78)


def test_the_gaussian_head_knows_the_spread():
    x, margin, member = _world()
    fitted, parts = _fitted("gaussian")
    rows = parts.evaluate[~member[parts.evaluate]]
    value = np.asarray(quantile.score(fitted, x[rows], margin[rows]).value)
    wide = np.abs(x[rows, 1]) > 1
    # s.e. of a deviation of 300 values: .04, and as much for the fit.
    assert value[wide].std() == pytest.approx(1.0, abs=0.17)
    assert value[~wide].std() == pytest.approx(1.0, abs=0.17)


def test_pinball_is_the_quantile():
    x, margin, member = _world()
    fitted, parts = _fitted("pinball")
    rows = parts.evaluate[~member[parts.evaluate]]
    value = np.asarray(quantile.score(fitted, x[rows], margin[rows]).value)
    # s.e. of a rate of .1 over 1000 rows is .0095, and as much for the fit.
    assert np.mean(value > 0) == pytest.approx(0.1, abs=3 * 0.0095 * np.sqrt(2))


def test_on_noise_it_is_at_chance():
    # Margins of non-members throughout: member is a coin of its own.
    x, margin, member = _world()
    rng = np.random.default_rng(8)
    margin = margin - 1.5 * member * (1 + np.abs(x[:, 1]))
    coin = rng.random(member.size) < 0.5
    parts = quantile.split(coin)
    held = x[parts.validate], margin[parts.validate]
    fitted = quantile.fit(
        jax.random.key(1), x[parts.fit], margin[parts.fit], validation=held, steps=200
    )
    rows = parts.evaluate
    value, truth = np.asarray(quantile.score(fitted, x[rows], margin[rows]).value), coin
    ins, outs = value[truth[rows]], value[~truth[rows]]
    error = np.sqrt((ins.size + outs.size + 1) / (12 * ins.size * outs.size))
    assert abs(metrics.auc(ins, outs).value - 0.5) < 3 * error


def test_the_parts_are_disjoint_and_nothing_learnt_is_scored():
    member = np.random.default_rng(0).random(500) < 0.5
    parts = quantile.split(member, evaluate=0.4, validate=0.25, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(500))
    assert not member[parts.fit].any() and not member[parts.validate].any()
    assert member[parts.evaluate].sum() == member.sum()
    assert (~member[parts.evaluate]).sum() == round(0.4 * (~member).sum())
    assert parts.validate.size < parts.fit.size


def test_what_is_not_finite_is_not_valid():
    x, margin, _ = _world()
    fitted, _ = _fitted("gaussian")
    x, margin = x[:10].copy(), margin[:10].copy()
    x[2, 1], margin[5] = np.nan, np.inf
    found = quantile.score(fitted, x, margin)
    np.testing.assert_array_equal(np.flatnonzero(~np.asarray(found.valid)), [2, 5])


def test_wrong_options_are_refused():
    x, margin, member = _world(100)
    with pytest.raises(ValueError, match="head='normal'"):
        quantile.fit(
            jax.random.key(0), x, margin, validation=(x, margin), head="normal"
        )
    with pytest.raises(ValueError, match="do not fill the three parts"):
        quantile.split(np.arange(4) > 1)
    with pytest.raises(ValueError, match="quantile.evaluate=1.0"):
        quantile.split(member, evaluate=1.0)
