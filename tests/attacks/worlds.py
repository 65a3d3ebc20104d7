"""Generated signals for the tests of the attacks: designs, noise, planted leaks."""

import numpy as np


def paired(models, n, seed=0, shared=True):
    """member bool[M, n], pair int[M]; n even unless some are to be left over."""
    rng = np.random.default_rng(seed)
    member = np.zeros((models, n), bool)
    half = n // 2 if shared else n // 2 - 1
    for first in range(0, models, 2):
        order = rng.permutation(n)
        member[first, order[:half]] = True
        member[first + 1, order[n - half :]] = True
    return member, np.arange(models) ^ 1


def halves(models, n, seed=0):
    """Every example in exactly half of the models, without pairs."""
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((models, n)), axis=0)
    return order < models // 2, np.full(models, -1)


def coins(models, n, seed=0):
    """A fair coin for every model and example."""
    rng = np.random.default_rng(seed)
    return rng.random((models, n)) < 0.5, np.full(models, -1)


def leaky(member, seed=0, queries=1, gap=1.5, spread=0.7):
    """Margins float32[M, n, Q]: hard and easy examples, each with a gap of its own.

    Examples differ in difficulty, in how much membership lifts them, and in noise.
    """
    rng = np.random.default_rng(seed)
    n = member.shape[1]
    difficulty = rng.normal(1.0, 3.0, (n, 1))
    gaps = rng.gamma(1.0, gap, (n, 1))
    noise = np.exp(rng.normal(np.log(0.6), spread, (n, 1)))
    x = difficulty + gaps * member[:, :, None]
    x = x + noise * rng.normal(size=(*member.shape, queries))
    return x.astype(np.float32)


def noise(member, seed=0, queries=1):
    """Margins that know nothing of membership, on examples of different difficulty."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(1.0, 3.0, (member.shape[1], 1))
    x = difficulty + rng.normal(size=(*member.shape, queries))
    return x.astype(np.float32)


def log_prob(margin):
    """log p_y of margins, log sigmoid."""
    return (-np.logaddexp(0.0, -margin.astype(np.float64))).astype(np.float32)
