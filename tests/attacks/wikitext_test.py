"""Language models' attacks on WikiText-2: a GRU trained on a random half of the texts.

Membership is a coin, so the blind baseline has nothing to find; a model that has learnt
its half by heart is found out by the plain log-likelihood.
"""

import functools
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trustml.attacks import blind, language, metrics
from trustml.data import tokenizers
from trustml.models import language_model

T = 24


def _windows(data_dir, count, vocab_size):
    """Texts of T words in a row, no two overlapping, and their words."""
    with gzip.open(data_dir / "wikitext2" / "test.txt.gz", "rt") as file:
        lines = [line.split() for line in file]
    words = [w for w in lines if len(w) >= T and w[0] != "="]
    texts = [w[i : i + T] for w in words for i in range(0, len(w) - T + 1, T)]
    rng = np.random.default_rng(0)
    if count:
        texts = [texts[i] for i in rng.choice(len(texts), count, replace=False)]
    member = rng.permutation(len(texts)) < len(texts) // 2
    # Both halves make the vocabulary: it must not tell one from the other.
    tokenizer = tokenizers.word(tokenizers.build_vocab(texts, vocab_size))
    encoded = tokenizer.encode_many(texts, T)
    return texts, {"tokens": encoded.tokens, "length": encoded.length}, member


def _trained(task, batch, member, *, steps, batch_size, rate=0.01):
    rows = jnp.asarray(np.flatnonzero(member))
    optimizer, batch = optax.adam(rate), jax.tree.map(jnp.asarray, batch)

    def step(carry, number):
        params, state = carry
        key = jax.random.fold_in(jax.random.key(1), number)
        drawn = rows[jax.random.randint(key, (batch_size,), 0, rows.size)]
        some = {name: column[drawn] for name, column in batch.items()}

        def mean(params):
            one = jax.vmap(task.loss, (None, 0, None))
            return jnp.mean(one(params, some, jax.random.key(0)))

        grads = jax.grad(mean)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train():
        params = task.init(jax.random.key(0))
        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, jnp.arange(steps))[0][0]

    with jax.numpy_dtype_promotion("standard"):  # optax.adam breaks the strict one
        return train()


@jax.jit
def _said(log_probs, tokens):
    return (
        language_model.token_log_probs(log_probs, tokens),
        *language.moments(log_probs),
    )


def _scores(task, params, texts, batch):
    """Scores of all attacks, and the log-probabilities of the first 50 texts."""
    predict = jax.jit(jax.vmap(task.predict, (None, 0)))
    parts, first = [], None
    for i in range(0, len(texts), 50):
        some = {name: column[i : i + 50] for name, column in batch.items()}
        log_probs = predict(params, some)
        first = log_probs if first is None else first
        parts.append(_said(log_probs, some["tokens"]))
    said, mu, sigma = (np.concatenate(part) for part in zip(*parts, strict=True))
    mask = np.arange(T)[None] < batch["length"][:, None]
    size = language.zlib_bytes([" ".join(words) for words in texts])
    found = {
        "log-likelihood": language.log_likelihood(said, mask),
        "zlib": language.against_zlib(said, mask, size),
        "Min-K%": language.min_k(said, mask),
        "Min-K%++": language.min_k_plus(said, mu, sigma, mask),
    }
    return {name: np.asarray(x.value) for name, x in found.items()}, np.asarray(first)


def _min_k_plus_loop(log_probs, tokens, k=0.2):
    """One text in float64, token by token."""
    out = []
    for t, token in enumerate(tokens):
        lp = log_probs[t].astype(np.float64)
        p = np.exp(lp)
        mu = np.sum(p * lp)
        sigma = np.sqrt(np.sum(p * (lp - mu) ** 2))
        out.append((lp[token] - mu) / max(sigma, 1e-6))
    return np.mean(np.sort(out)[: int(np.ceil(k * len(tokens) - 1e-4))])


def _measure(data_dir, *, count, vocab_size, sizes, **training):
    texts, batch, member = _windows(data_dir, count, vocab_size)
    task = language_model.task(vocab_size, **sizes)
    params = _trained(task, batch, member, **training)
    scores, log_probs = _scores(task, params, texts, batch)
    loop = [
        _min_k_plus_loop(log_probs[i], batch["tokens"][i][: batch["length"][i]])
        for i in range(20)
    ]
    np.testing.assert_allclose(scores["Min-K%++"][:20], loop, rtol=1e-5, atol=1e-5)
    areas = {n: metrics.auc(x[member], x[~member]) for n, x in scores.items()}
    mask = np.arange(T)[None] < batch["length"][:, None]
    features = blind.bag_of_tokens(batch["tokens"], mask, buckets=vocab_size)
    return areas, blind.measure(features, member), member


def _check(areas, blinded, member):
    for name, area in areas.items():
        print(f"{name:>15}: AUC {area.value:.3f} [{area.lo:.3f}, {area.hi:.3f}]")
    print(f"{'blind':>15}: AUC {blinded.auc:.3f}")
    assert areas["log-likelihood"].value > 0.6
    for area in areas.values():
        assert area.lo > 0.5
    assert not blinded.differs
    # The standard error of an AUC without information.
    inside, outside = member.sum(), (~member).sum()
    stderr = np.sqrt((member.size + 1) / (12 * inside * outside))
    assert abs(blinded.auc - 0.5) < 3 * stderr


@pytest.mark.data
def test_a_model_that_knows_its_half_by_heart(data_dir):
    """Row 18 on 400 texts."""
    measure = functools.partial(_measure, data_dir, sizes={"width": 24, "hidden": 48})
    _check(*measure(count=400, vocab_size=500, steps=150, batch_size=40))


@pytest.mark.slow
@pytest.mark.data
def test_the_whole_test_part(data_dir):
    """Prints the AUC of every attack on all windows of the test part.

    pytest -s -m slow tests/attacks/wikitext_test.py
    """
    sizes = {"width": 48, "hidden": 96}
    measure = functools.partial(_measure, data_dir, sizes=sizes)
    _check(*measure(count=0, vocab_size=2000, steps=1500, batch_size=50, rate=0.005))
