"""The chain against enumeration of all tag sequences, and at its numerical edges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.models import crf

T, S = 4, 3


def _chain(scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)  # noqa: E731
    return crf.Crf(draw(S, S), draw(S), draw(S)), draw(T, S)


def _enumerate(chain, emissions, length):
    """All sequences of `length` tags with their scores, in float64."""
    chain = crf.Crf(*(np.asarray(x, np.float64) for x in chain))
    emissions = np.asarray(emissions, np.float64)
    paths = list(itertools.product(range(S), repeat=length))
    scores = []
    for path in paths:
        total = chain.start[path[0]] + chain.end[path[-1]] if path else 0.0
        total += sum(emissions[t, tag] for t, tag in enumerate(path))
        total += sum(chain.transitions[i, j] for i, j in itertools.pairwise(path))
        scores.append(total)
    return np.array(paths, int).reshape(len(paths), length), np.array(scores)


@jax.jit
def _all(chain, emissions, tags, length):
    z, grads = jax.value_and_grad(crf.log_partition, (0, 1))(chain, emissions, length)
    return {
        "z": z,
        "chain_grads": grads[0],
        "emission_grads": grads[1],
        "log_likelihood": crf.log_likelihood(chain, emissions, tags, length),
        "marginals": crf.log_marginals(chain, emissions, length),
        "viterbi": crf.viterbi(chain, emissions, length),
    }


@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("length", range(T + 1))
def test_against_enumeration(length, scale):
    chain, emissions = _chain(scale)
    tags = jnp.array([2, 0, 1, 1], jnp.int32)
    out = _all(chain, emissions, tags, jnp.int32(length))
    paths, scores = _enumerate(chain, emissions, length)
    z = np.logaddexp.reduce(scores)
    np.testing.assert_allclose(out["z"], z, rtol=1e-5, atol=1e-5)
    truth = scores[(paths == np.asarray(tags)[:length]).all(axis=1)].item()
    np.testing.assert_allclose(out["log_likelihood"], truth - z, rtol=2e-5, atol=2e-5)
    best = paths[scores.argmax()]
    np.testing.assert_array_equal(out["viterbi"], [*best, *[0] * (T - length)])
    marginals = np.full((T, S), 1 / S)
    for t in range(length):
        for tag in range(S):
            marginals[t, tag] = np.exp(scores[paths[:, t] == tag] - z).sum()
    np.testing.assert_allclose(
        out["marginals"], np.log(marginals), rtol=1e-4, atol=2e-5
    )
    # d log Z / d emissions are the marginals; d log Z / d transitions expected counts.
    real = np.arange(T)[:, None] < length
    np.testing.assert_allclose(
        out["emission_grads"], np.where(real, marginals, 0), atol=1e-5
    )
    np.testing.assert_allclose(
        out["chain_grads"].transitions.sum(), max(length - 1, 0), atol=1e-4
    )


def test_what_follows_the_end_does_not_matter():
    chain, emissions = _chain()
    tags = jnp.array([1, 2, 0, 0], jnp.int32)
    other = emissions.at[2:].set(jnp.nan)
    a = _all(chain, emissions, tags, jnp.int32(2))
    b = _all(chain, other, tags.at[2:].set(1000), jnp.int32(2))
    for key in ("z", "log_likelihood", "marginals", "viterbi"):
        np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("scale", [30.0, 1e4])
@pytest.mark.parametrize("length", [0, 1, T])
def test_extreme_scores_stay_finite(scale, length):
    chain, emissions = _chain(scale, seed=1)
    tags = jnp.zeros(T, jnp.int32)
    out = _all(chain, emissions, tags, jnp.int32(length))
    for path, leaf in jax.tree.leaves_with_path(out):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    assert out["log_likelihood"] <= 1e-5 * scale


def test_equal_scores_give_the_uniform_distribution():
    chain = crf.Crf(jnp.full((S, S), 500.0), jnp.zeros(S), jnp.zeros(S))
    out = _all(chain, jnp.full((T, S), -90.0), jnp.zeros(T, jnp.int32), jnp.int32(T))
    np.testing.assert_allclose(out["log_likelihood"], -T * np.log(S), atol=1e-3)
    np.testing.assert_allclose(np.exp(out["marginals"]), 1 / S, rtol=1e-5)
