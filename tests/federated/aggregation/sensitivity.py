"""Brute force: what one client can do to what the server releases.

A release is a function (messages [m, d], examples [m], present [m], seed) -> float64[d]
of what leaves the server, noise included; the seed fixes the noise, so that two calls
with one seed differ by what clients sent, and calls with other seeds by noise. Measured
in this way nothing is believed of what a chain says about itself, and a release that is
no chain can be tested too.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import rng
from trustml.federated.aggregation import link

# Little is computed here and much compiled: without optimising, in half the time.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)

SPLIT = 3  # coordinates of the first leaf


def tree(x):
    """Coordinates on the last axis as two leaves, one of them a matrix."""
    rest = x[..., SPLIT:]
    return {"a": x[..., :SPLIT], "b": rest.reshape(*rest.shape[:-1], 2, -1)}


def flat(update):
    return np.concatenate(
        [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(update)]
    )


class Round(NamedTuple):
    """One round of a chain.

    Attributes:
      release: see above; it gives the update times W, the sum.
      state: seed -> the server's state before the round.
      run: the jitted round, (state, messages, weights, present) -> (update, state,
        memory, Record, Info).
      memory: what every client kept.
    """

    release: Callable
    state: Callable
    run: Callable
    memory: Any


def of_chain(aggregator, size, *, expected_weight, rows=8, memory=0.0):
    """A round of a chain; each client has kept `memory` in every coordinate."""
    like = tree(jnp.zeros(size, jnp.float32))
    kept = jax.tree.map(lambda x: x + jnp.float32(memory), aggregator.memory(like))
    keys = jax.random.split(jax.random.key(3), rows)
    init = quick_jit(lambda root: aggregator.init(like, root))

    @functools.cache
    def state(seed):
        return init(rng.root(seed))

    @quick_jit
    def run(state, messages, weights, present):
        sent, after, record = jax.vmap(aggregator.client, (None, 0, None, 0))(
            state, tree(messages), kept, keys
        )
        cohort = link.cohort(weights, present, expected_weight=expected_weight)
        if aggregator.collect == "sum":
            sent = link.weighted_sum(sent, cohort)
        update, state, info = aggregator.server(state, sent, cohort, jax.random.key(7))
        return update, state, after, record, info

    def release(messages, examples, present, seed):
        weights = aggregator.rule.of(np.arange(rows), examples).astype(np.float32)
        messages = messages.astype(np.float32)
        update, *_ = run(state(seed), messages, weights, present)
        return flat(update) * expected_weight

    return Round(release, state, run, kept)


def largest_changes(release, size, *, rows=8, cohorts=25, seed=0):
    """(removing one client, replacing its message): largest L2 moved, of all tried."""
    gen = np.random.default_rng(seed)
    removed = replaced = 0.0
    for number in range(cohorts):
        messages = gen.normal(size=(rows, size)) * 10 ** gen.uniform(-2, 2, (rows, 1))
        examples = np.ceil(10 ** gen.uniform(0, 3, rows))
        present = gen.random(rows) < gen.choice([0.2, 0.6, 1.0])
        one = int(gen.integers(rows))
        present[one] = True
        examples[one] = 1000  # the heaviest
        away = messages[one] / np.linalg.norm(messages[one])
        contents = [messages[one], 0 * away, 50 * away, -50 * away]
        extreme = gen.choice([np.nan, np.inf, 1e30, -3e38, 1e-30])
        contents.append(np.where(np.arange(size) == 0, extreme, away))
        found = []
        for content in contents:
            given = messages.copy()
            given[one] = content
            found.append(release(given, examples, present, number))
        absent = present.copy()
        absent[one] = False
        nobody = release(messages, examples, absent, number)
        for k, x in enumerate(found):
            assert np.all(np.isfinite(x)), (number, k)
            removed = max(removed, np.linalg.norm(x - nobody))
            replaced = max(replaced, *(np.linalg.norm(x - y) for y in found))
    return removed, replaced


def noise_stddev(release, size, *, rows=8, draws=150):
    """Standard deviation of what is released of one and the same cohort."""
    messages, present = np.zeros((rows, size)), np.ones(rows, bool)
    examples = np.ones(rows)
    found = [release(messages, examples, present, 1000 + k) for k in range(draws)]
    return np.std(np.stack(found), axis=0, ddof=1)


def check_noise_covers(release, size, noise_multiplier, **options):
    """Raises AssertionError unless the noise is z times what one client can move.

    With `draws` x `size` = 150 x 7 normals a stddev has a standard error of 2.2 %, so
    10 % less than z is 4.5 of them.
    """
    moved, _ = largest_changes(release, size, **options)
    stddev = np.sqrt(np.mean(noise_stddev(release, size) ** 2))
    assert stddev >= 0.9 * noise_multiplier * moved, (
        f"noise of {stddev:.3g} for a change of {moved:.3g} is a multiplier of "
        f"{stddev / moved:.3g}, not {noise_multiplier:g}"
    )
