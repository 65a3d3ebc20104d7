"""Every rule against plain NumPy, with attackers, absent rows and great distances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.federated.aggregation import attackers, sensitivity
from trustml.federated.aggregation import chain, link, robust

M, D, F = 13, 7, 2


def krum_order(rows, f):
    """Rows by ascending score, in float64."""
    n = len(rows)
    scores = []
    for i in range(n):
        far = sorted(np.sum((rows[i] - rows[j]) ** 2) for j in range(n) if j != i)
        scores.append(sum(far[: max(n - f - 2, 1)]))
    return np.argsort(scores, kind="stable")


def bulyan(rows, f):
    left, picked = list(range(len(rows))), []
    for _ in range(len(rows) - 2 * f):
        picked.append(left.pop(krum_order(rows[left], f)[0]))
    picked = rows[sorted(picked)]
    middle = np.median(picked, axis=0)
    out = np.empty(rows.shape[1])
    for k, column in enumerate(picked.T):
        near = np.argsort(np.abs(column - middle[k]), kind="stable")
        out[k] = column[near[: len(rows) - 4 * f]].mean()
    return out


def trimmed(rows, share):
    cut = int(np.floor(share * len(rows) + 1e-9))
    return np.sort(rows, axis=0)[cut : len(rows) - cut].mean(0)


def bounded(rows, norm=None):
    norms = np.linalg.norm(rows, axis=1)
    most = np.median(norms) if norm is None else norm
    return (rows * np.minimum(1, most / norms)[:, None]).mean(0)


RULES = {
    "median": (robust.median(), lambda x: np.median(x, axis=0), 1),
    "trimmed": (robust.trimmed_mean(0.3), lambda x: trimmed(x, 0.3), 1),
    "krum": (robust.krum(F), lambda x: x[krum_order(x, F)[0]], 7),
    "multi_krum": (
        robust.multi_krum(F),
        lambda x: x[krum_order(x, F)[: len(x) - F]].mean(0),
        7,
    ),
    "keep": (
        robust.multi_krum(F, keep=3),
        lambda x: x[krum_order(x, F)[:3]].mean(0),
        7,
    ),
    "bulyan": (robust.bulyan(F), lambda x: bulyan(x, F), 11),
    "norm_bound": (robust.norm_bound(), bounded, 1),
    "norm_fixed": (robust.norm_bound(1.5), lambda x: bounded(x, 1.5), 1),
}


@functools.cache
def server(name):
    aggregator = chain.chain(RULES[name][0])
    assert aggregator.collect == "stack"

    @sensitivity.quick_jit
    def run(messages, mask):
        cohort = link.cohort(jnp.ones(M), mask, expected_weight=1.0)
        stack = link.Message(sensitivity.tree(messages))
        update, _, info = aggregator.server(((), ()), stack, cohort, jax.random.key(0))
        return update, info

    return run


def aggregate(name, messages, mask):
    update, info = server(name)(messages.astype(np.float32), mask)
    return sensitivity.flat(update), info


@pytest.mark.parametrize("name", RULES)
def test_rules_are_those_of_plain_numpy(name):
    _, oracle, least = RULES[name]
    gen = np.random.default_rng(0)
    for number in range(24):
        messages = gen.normal(size=(M, D)) + gen.normal(size=D)
        count = int(gen.integers(least, M + 1))
        mask = np.zeros(M, bool)
        mask[gen.permutation(M)[:count]] = True
        attack = list(attackers.ALL.values())[number % 4]
        rows = messages[mask]
        if count > 6:
            rows = attack(rows, F)
        messages[mask] = rows.astype(np.float32)
        messages[~mask] = gen.choice([np.nan, np.inf, 1e30])
        found, info = aggregate(name, messages, mask)
        rows = messages[mask]
        scale = np.abs(rows).max() if "norm" in name else np.abs(found).max() + 1
        np.testing.assert_allclose(found, oracle(rows), rtol=1e-5, atol=1e-5 * scale)
        assert not bool(info.aborted)
        assert not np.any(np.asarray(info.kept) & ~mask)
    assert server(name)._cache_size() == 1


@pytest.mark.parametrize("name", RULES)
def test_of_identical_messages_every_rule_returns_them(name):
    x = np.random.default_rng(1).normal(size=D)
    x /= np.linalg.norm(x)
    mask = np.arange(M) != 4
    found, _ = aggregate(name, np.tile(x, (M, 1)), mask)
    np.testing.assert_allclose(found, x, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", RULES)
def test_with_too_few_rows_nothing_moves(name):
    least = RULES[name][2]
    for count in (0, least - 1, least):
        mask = np.arange(M) < count
        found, info = aggregate(name, np.ones((M, D)), mask)
        assert bool(info.aborted) == (count < least)
        assert np.any(found != 0) == (count >= least)
        assert np.asarray(info.kept).any() == (count >= least)


@pytest.mark.parametrize("attack", attackers.ALL)
@pytest.mark.parametrize("name", ["median", "trimmed", "krum", "multi_krum", "bulyan"])
def test_attackers_do_not_move_what_honest_clients_agree_on(name, attack):
    gen = np.random.default_rng(2)
    common = gen.normal(size=D) * 3
    messages = common + 0.3 * gen.normal(size=(M, D))
    messages = attackers.ALL[attack](messages, F)
    found, _ = aggregate(name, messages, np.ones(M, bool))
    # Single messages lie 0.3 sqrt(7) = 0.8 away, their mean 0.24; Krum gives a single.
    assert np.linalg.norm(found - common) < (1.5 if name == "krum" else 0.8)
    if attack in ("sign_flip", "scaled"):
        assert np.linalg.norm(messages.mean(0) - common) > 5


def test_distances_keep_their_digits_against_a_far_common_part_and_far_attackers():
    gen = np.random.default_rng(3)
    honest = 1e4 + gen.integers(-8, 8, (M, D)) / 4
    for attack in (lambda x: x, lambda x: attackers.scaled(x, F, 1e6)):
        messages = attack(honest).astype(np.float32)
        square = robust.distances({"w": jnp.asarray(messages)}, jnp.ones(M, bool))
        rows = messages[F:].astype(np.float64)
        wanted = np.sum((rows[:, None] - rows[None]) ** 2, axis=-1)
        inside = ~np.eye(M - F, dtype=bool)
        np.testing.assert_allclose(
            np.asarray(square)[F:, F:][inside], wanted[inside], rtol=1e-4, atol=1e-3
        )
    assert np.all(np.isinf(np.diagonal(square)))


def test_overflowing_messages_are_merely_far():
    messages = np.random.default_rng(4).normal(size=(M, D))
    messages[:F] = 3e38
    for name in ("median", "trimmed", "krum", "multi_krum", "bulyan", "norm_bound"):
        found, _ = aggregate(name, messages, np.ones(M, bool))
        assert np.all(np.abs(found) < 3)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"share=0.5 must be at least 0 and below 0.5"):
        robust.trimmed_mean(0.5)
    with pytest.raises(ValueError, match="attackers=-1 must be >= 0"):
        robust.krum(-1)
    aggregator = chain.chain(robust.bulyan(3))
    stack = link.Message({"w": jnp.zeros((M, D))})
    cohort = link.cohort(jnp.ones(M), expected_weight=1.0)
    with pytest.raises(ValueError, match="attackers=3 needs 15 rows, and .* has 13"):
        aggregator.server(((), ()), stack, cohort, jax.random.key(0))


def through(rule, rows):
    """What `rule` makes of rows [n, 1]."""
    stack = link.Message({"w": jnp.asarray(rows, jnp.float32)})
    cohort = link.cohort(jnp.ones(len(rows)), expected_weight=1.0)
    found, _, _ = chain.chain(rule).server(((), ()), stack, cohort, jax.random.key(0))
    return float(found["w"][0])


@pytest.mark.parametrize("keep", [9, 10, 100])
def test_multi_krum_keeps_no_more_than_the_honest(keep):
    rows = np.ones((10, 1))
    rows[3] = 1e6
    assert through(robust.multi_krum(1, keep=keep), rows) == 1


@pytest.mark.parametrize("many", [1, 2])
def test_a_norm_beyond_float32_counts_as_zero_however_few_there_are(many):
    rows = np.ones((2 * many, 1))
    rows[:many] = 1e20
    assert through(robust.norm_bound(), rows) == 0.5
