"""Scores of codes, searches and the relaxed attack, on models small enough to check."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from trustml import rng
from trustml import task as task_lib
from trustml.attacks import exposure
from trustml.attacks.extraction import canary, relaxed, scoring, search
from trustml.models import bag, gru

VOCAB, T, SLOTS = 30, 7, 4
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)
DIGITS = np.arange(10, 20, dtype=np.int32)
TAGS = [[1, 2, 2], [0, 0, 0], [3, 3, 3]]
PATTERN = canary.pattern([4, 5, -1, -1, 6, -1], DIGITS, max_length=T)
CODES = canary.all_codes(PATTERN)
TASK = gru.task(VOCAB, 3, SLOTS, width=8, hidden=6)


def _secret(seed):
    return canary.draw(rng.root(seed), PATTERN, num_labels=3, code_tags=TAGS)


def _stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.fixture(scope="module")
def trained():
    """Eight models of 24 random texts: four with 8 copies of a canary, four without."""
    generator = np.random.default_rng(0)
    base = {
        "tokens": generator.integers(1, VOCAB, (24, T)).astype(np.int32),
        "length": np.full(24, T, np.int32),
        "label": generator.integers(0, 3, 24).astype(np.int32),
        "slots": generator.integers(0, SLOTS, (24, T)).astype(np.int32),
    }
    secrets = [_secret(seed) for seed in range(4)]
    data = []
    for secret in secrets:
        ordinary = {name: column[0] for name, column in base.items()}
        data.append(canary.insert(base, canary.example(PATTERN, secret), 8))
        data.append(canary.insert(base, ordinary, 8))
    tx = optax.adam(2e-2)

    def train(columns, key):
        params = TASK.init(key)

        def loss(params):
            one = jax.vmap(TASK.loss, (None, 0, None))
            return jnp.mean(one(params, columns, jax.random.key(0)))

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=80)[0][0]

    with jax.numpy_dtype_promotion("standard"):  # of optax
        keys = jax.random.split(jax.random.key(0), 8)
        params = jit(jax.vmap(train))(_stack(data), keys)
    targets = _stack([canary.target(PATTERN, s) for s in secrets for _ in "ab"])
    score = jit(jax.vmap(scoring.scorer(TASK, PATTERN, chunk=300), (0, 0, None)))
    losses = score(params, targets, CODES)
    return params, targets, secrets, np.asarray(losses)


def test_scores_and_rank_equal_brute_force(trained):
    """Every code by `predict` of the whole example, in a Python loop over the ranks."""
    params, targets, secrets, losses = trained
    predict = jit(jax.vmap(TASK.predict, (None, 0)))
    one = jax.tree.map(lambda leaf: leaf[0], params)
    known = jax.tree.map(lambda leaf: np.asarray(leaf[0]), targets)
    digits = list(itertools.product(range(10), repeat=3))
    np.testing.assert_array_equal(CODES, digits)
    tokens = np.tile(PATTERN.tokens, (1000, 1))
    tokens[:, [2, 3, 5]] = DIGITS[CODES]
    batch = {k: jnp.asarray(np.repeat(v[None], 1000, 0)) for k, v in known.items()}
    out = predict(one, batch | {"tokens": jnp.asarray(tokens)})
    label, slots = np.asarray(out.label), np.asarray(out.slots)
    expected = np.zeros(1000)
    for n in range(1000):
        picked = [slots[n, t, known["slots"][t]] for t in range(6)]
        expected[n] = -label[n, known["label"]] - np.mean(picked)
    np.testing.assert_allclose(losses[0], expected, rtol=1e-4, atol=1e-5)
    own = canary.index(PATTERN, secrets[0].code)
    rank = 1 + sum(bool(x < losses[0][own]) for x in losses[0])
    assert exposure.exact(losses[0], own).worst_rank == rank


def test_a_learned_canary_stands_out_from_its_controls(trained):
    _, _, secrets, losses = trained
    found = {"inserted": [], "absent": [], "decoy": []}
    for n, secret in enumerate(secrets):
        own = canary.index(PATTERN, secret.code)
        other = canary.decoy(rng.root(n), PATTERN, secret)
        assert (other.code != secret.code).any()
        found["inserted"].append(exposure.exact(losses[2 * n], own))
        found["absent"].append(exposure.exact(losses[2 * n + 1], own))
        fresh = canary.index(PATTERN, other.code)
        found["decoy"].append(exposure.exact(losses[2 * n], fresh))
    summary = exposure.summarise(
        found["inserted"], absent=found["absent"], decoy=found["decoy"]
    )
    assert summary.delta_median > 3.0
    assert summary.p_value < 1e-4 < summary.control_p_value


def test_searches_find_what_scoring_all_finds(trained):
    """On trained models: never below the optimum, its true loss, and near it.

    Beam and coordinate descent search 10^3 codes with some 10^2 evaluations; over eight
    models they must find the optimum at least six times, the relaxed attack three.
    """
    params, targets, _, losses = trained
    keys = jax.random.split(jax.random.key(1), 8)
    with jax.numpy_dtype_promotion("standard"):  # of optax
        attack = jax.vmap(relaxed.gumbel(TASK, PATTERN, steps=150, restarts=8))
        soft = jit(attack)(params, targets, keys)
    beam = jit(jax.vmap(search.beam(TASK, PATTERN, width=20)))(params, targets)
    descent = jax.vmap(search.coordinate_descent(TASK, PATTERN, restarts=8))
    down = jit(descent)(params, targets, jax.random.clone(keys))
    for name, found, least in (("beam", beam, 6), ("down", down, 6), ("soft", soft, 3)):
        index = [[canary.index(PATTERN, code) for code in m] for m in found.codes]
        true = np.take_along_axis(losses, np.array(index), axis=1)
        np.testing.assert_allclose(found.losses, true, rtol=1e-4, atol=1e-5)
        assert (np.diff(found.losses, axis=1) >= 0).all()
        hits = int(np.sum(true[:, 0] <= losses.min(axis=1) + 1e-5))
        assert hits >= least, (name, hits)


def _planted(code):
    """A task whose label is the likelier the more tokens of `code` stand in place."""
    wanted = jnp.asarray(DIGITS[np.asarray(code)])

    def embed(params, example):
        return params["table"][example["tokens"]]

    def head(params, embeddings, example):
        right = jnp.sum(embeddings[PATTERN.positions] * params["table"][wanted], 1)
        score = jnp.sum(right) + 2.0 * jnp.prod(right)
        return jax.nn.log_softmax(jnp.stack([score, jnp.zeros_like(score)]))

    def predict(params, example):
        return head(params, embed(params, example), example)

    def init(key):
        return {"table": jnp.eye(VOCAB)}

    return task_lib.classification(init, predict, embed=embed, head=head)


@pytest.mark.parametrize("code", [(3, 1, 4), (9, 9, 0)], ids=["314", "990"])
def test_every_search_finds_a_planted_optimum(code):
    task, loss = _planted(code), scoring.joint_loss(slot_weight=0.0)
    params = task.init(None)
    target = canary.target(PATTERN, _secret(0)._replace(label=0))
    with jax.numpy_dtype_promotion("standard"):  # of optax
        soft = jit(relaxed.gumbel(task, PATTERN, loss=loss, steps=150, restarts=4))(
            params, target, jax.random.key(0)
        )
    beam = jit(search.beam(task, PATTERN, loss=loss, width=4))(params, target)
    descent = search.coordinate_descent(task, PATTERN, loss=loss, restarts=2)
    down = jit(descent)(params, target, jax.random.key(1))
    for found in (soft, beam, down):
        np.testing.assert_array_equal(found.codes[0], code)


def test_exposure_of_untrained_models_is_uniform():
    """200 untrained models and secrets: worst ranks of 1,000 uniform, KS p > 1e-3.

    Ranks are multiples of 1/1000, which moves the KS distance by at most 1e-3 against
    its scale 1/sqrt(200) = 0.07. The share of exposures of at least 3 bits is at most
    1/8 with standard deviation 0.023.
    """
    secrets = canary.random_codes(rng.root(3), PATTERN, 200)
    targets = _stack([canary.target(PATTERN, _secret(n)) for n in range(4)] * 50)
    params = jit(jax.vmap(TASK.init))(jax.random.split(jax.random.key(2), 200))
    score = scoring.scorer(TASK, PATTERN)

    @jit
    def all_scores(params, targets):
        return jax.lax.map(lambda one: score(*one, CODES), (params, targets))

    losses = np.asarray(all_scores(params, targets))
    found = [
        exposure.exact(row, canary.index(PATTERN, secret))
        for row, secret in zip(losses, secrets, strict=True)
    ]
    p_values = [one.p_value for one in found]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    assert np.mean([one.bits >= 3 for one in found]) <= 1 / 8 + 3 * 0.023
    assert 0.5 < np.median([one.bits for one in found]) < 1.5


def test_marginals_against_a_loop():
    losses = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    weights = np.exp(-losses / 0.5)
    expected = np.zeros((3, 10))
    for code, weight in zip(CODES, weights / weights.sum(), strict=True):
        expected[np.arange(3), code] += weight
    got = scoring.marginals(jnp.asarray(losses), PATTERN, temperature=0.5)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_a_canary_is_drawn_and_inserted():
    secret = _secret(5)
    example = canary.example(PATTERN, secret)
    np.testing.assert_array_equal(example["tokens"][[0, 1, 4, 6]], [4, 5, 6, 0])
    np.testing.assert_array_equal(example["tokens"][[2, 3, 5]], DIGITS[secret.code])
    assert secret.slots[[2, 3, 5]].tolist() in TAGS
    assert not secret.slots[[0, 1, 4, 6]].any()
    hidden = canary.target(PATTERN, secret)
    np.testing.assert_array_equal(hidden["tokens"][[2, 3, 5]], DIGITS[0])
    base = {name: np.zeros((2, *x.shape), x.dtype) for name, x in example.items()}
    out = canary.insert(base, example, 3)
    assert len(out["label"]) == 5
    np.testing.assert_array_equal(out["tokens"][2:], [example["tokens"]] * 3)
    assert all((_secret(5).code == secret.code).tolist())
    draws = canary.random_codes(rng.root(0), PATTERN, 300)
    # 900 digits: each is expected 90 times, with standard deviation 9.
    assert np.abs(np.bincount(draws.ravel(), minlength=10) - 90).max() < 4.5 * 9


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="holds token 7 twice; words that share an id"):
        canary.pattern([-1], [7, 8, 7], max_length=2)
    with pytest.raises(ValueError, match="has no unknown position"):
        canary.pattern([1, 2], [7, 8], max_length=2)
    with pytest.raises(ValueError, match="max_length=1 cuts the 2 tokens off"):
        canary.pattern([1, -1], [7, 8], max_length=1)
    with pytest.raises(ValueError, match="'10000000 codes' must be at most"):
        canary.all_codes(canary.pattern([-1] * 7, DIGITS, max_length=7))
    with pytest.raises(ValueError, match=r"code_tags=\[1, 2\] must be \[K, 3\]"):
        canary.draw(rng.root(0), PATTERN, num_labels=2, code_tags=[[0, 0]])
    with pytest.raises(ValueError, match="must be those of the row"):
        canary.insert({"x": np.zeros(2)}, {"y": 0}, 1)
    bigrams = bag.task(VOCAB, 3, bigrams=8)
    with pytest.raises(ValueError, match="reads other tokens; switch bigrams off"):
        scoring.scorer(bigrams, PATTERN)
    with pytest.raises(ValueError, match="leaves nothing to score"):
        scoring.joint_loss(intent_weight=0.0, slot_weight=0.0)
    with pytest.raises(ValueError, match="last_temperature=2.0 must be <= 1.0"):
        relaxed.gumbel(TASK, PATTERN, last_temperature=2.0)
