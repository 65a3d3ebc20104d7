"""Embedding rows on real utterances: exact, clipped, summed, tied, noised, decayed."""

import functools
import gzip
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import trustml
from trustml.attacks.gradient_leakage import rows, sight
from trustml.data import tokenizers
from trustml.models import bag, gru, transformer

VOCAB, T, BATCH = 2048, 16, 16
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)
SNIPS = pathlib.Path(trustml.__file__).parent / "data/files/snips/test.jsonl.gz"


@pytest.fixture(scope="module")
def snips():
    """The 700 utterances of the test split, as columns."""
    with gzip.open(SNIPS, "rt") as lines:
        found = [json.loads(line) for line in lines]
    texts = [row["tokens"] for row in found]
    intents = sorted({row["intent"] for row in found})
    encoded = tokenizers.hashed(VOCAB).encode_many(texts, T)
    return {
        "tokens": encoded.tokens,
        "length": encoded.length,
        "label": np.array([intents.index(row["intent"]) for row in found], np.int32),
        "slots": encoded.tokens % 5,
    }


def _batch(columns, seed, size):
    """`size` utterances in the first slots of `BATCH`; the others do not count."""
    chosen = np.random.default_rng(seed).choice(len(columns["label"]), BATCH, False)
    batch = {name: jnp.asarray(column[chosen]) for name, column in columns.items()}
    return batch | {"mask": jnp.arange(BATCH) < size}


def _real(batch):
    mask = np.arange(T) < np.asarray(batch["length"])[:, None]
    mask &= np.asarray(batch["mask"])[:, None]
    return np.asarray(batch["tokens"])[mask]


MODELS = {
    "bag": lambda: bag.task(VOCAB, 7, width=16, hidden=(16,)),
    "gru": lambda: gru.task(VOCAB, 7, 5, width=16, hidden=8),
}


def _gradient(task):
    """(params, batch) -> gradient of the mean loss."""

    def loss(params, batch):
        mask = batch["mask"]
        one = jax.vmap(task.loss, (None, 0, None))
        losses = one(params, batch, jax.random.key(0))
        return jnp.sum(jnp.where(mask, losses, 0.0)) / jnp.sum(mask.astype(jnp.float32))

    return jit(jax.grad(loss))


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    task = MODELS[request.param]()
    return task, jit(task.init)(jax.random.key(1)), _gradient(task)


def _table(tree):
    return tree["table"]["embedding"]


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_untied_rows_are_the_tokens(model, snips, size):
    """Precision and recall 1 for every batch size, also after clipping."""
    _, params, gradient = model
    for seed in range(2):
        batch = _batch(snips, seed, size)
        grads = gradient(params, batch)
        one = jax.tree.map(lambda g: g[None], grads)
        clipped = sight.server(one, l2_clip_norm=1e-3, secure_aggregation=True)
        assert float(optax.tree.norm(clipped)) == pytest.approx(1e-3, rel=1e-4)
        for seen in (grads, clipped):
            found = rows.score(rows.nonzero(_table(seen)), _real(batch), VOCAB)
            assert (found.precision, found.recall) == (1.0, 1.0)
            assert found.chance_recall < 0.1


def test_secure_aggregation_shows_the_union(snips, model):
    """The sum of 8 clients gives the union of their tokens, and no client's own."""
    _, params, gradient = model
    batches = [_batch(snips, seed, 2) for seed in range(8)]
    made = [gradient(params, batch) for batch in batches]
    updates = jax.tree.map(lambda *g: jnp.stack(g), *made)
    seen = sight.server(updates, l2_clip_norm=0.1, secure_aggregation=True)
    claim = rows.nonzero(_table(seen))
    union = np.concatenate([_real(batch) for batch in batches])
    assert rows.score(claim, union, VOCAB)[:2] == (1.0, 1.0)
    one = rows.score(claim, _real(batches[0]), VOCAB)
    assert one.recall == 1.0
    assert one.precision < 0.5


@pytest.mark.parametrize("aggregated", [False, True], ids=["alone", "aggregated"])
def test_noise_hides_the_rows(snips, model, aggregated):
    """Row 16: z = 1, 16 utterances a client; recall at most chance + 0.05.

    The mean of 8 draws. A claim of n of V tokens at random has recall n / V; that of
    m true tokens has standard deviation below sqrt(n / V / m) = sqrt(0.045 / 90) =
    0.023, hence the mean of 8 one of 0.008, six times below what is allowed.
    """
    _, params, gradient = model
    gap, claimed = [], 0
    for seed in range(8):
        batch = _batch(snips, seed, 16)
        update = jax.tree.map(lambda g: g[None], gradient(params, batch))
        seen = sight.server(
            update,
            l2_clip_norm=1.0,
            noise_multiplier=1.0,
            secure_aggregation=aggregated,
            key=jax.random.key(seed),
        )
        table = _table(seen) if aggregated else _table(seen)[0]
        true = np.unique(_real(batch))
        found = rows.score(rows.largest(table, true.size), true, VOCAB)
        gap.append(found.recall - found.chance_recall)
        claimed += rows.above_noise(table, 1.0, level=0.05).tokens.size
        assert rows.nonzero(table).tokens.size == VOCAB
    assert np.mean(gap) <= 0.05
    # At most 0.05 false claims a draw: 8 draws have a mean of 0.4; 4 has p < 8e-4.
    assert claimed < 4


def test_above_noise_finds_what_stands_out():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(500, 16)) * 0.1
    table[[3, 70]] += 1.0
    assert set(rows.above_noise(table, 0.1).tokens) == {3, 70}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_several_local_steps(snips, optimizer):
    """Changes over 3 local steps give all tokens of all batches; decay is taken out."""
    task = MODELS["bag"]()
    gradient, params = _gradient(task), jit(task.init)(jax.random.key(1))
    rate, decay = 1e-2, 0.1
    tx = {
        "sgd": optax.sgd(rate, momentum=0.9),
        "adam": optax.adam(rate),
        "adamw": optax.adamw(rate, weight_decay=decay),
    }[optimizer]
    before, state, seen = params, tx.init(params), []
    for step in range(3):
        batch = _batch(snips, step, 4)
        seen.append(_real(batch))
        with jax.numpy_dtype_promotion("standard"):  # of optax
            updates, state = tx.update(gradient(params, batch), state, params)
        params = optax.apply_updates(params, updates)
    change = np.asarray(_table(params) - _table(before))
    if optimizer == "adamw":
        assert rows.nonzero(change).tokens.size > VOCAB * 0.9
        change = rows.without_decay(
            change, _table(before), learning_rate=rate, weight_decay=decay, steps=3
        )
    tolerance = 1e-5 if optimizer == "adamw" else 0.0
    claim = rows.nonzero(change, tolerance=tolerance)
    assert rows.score(claim, np.concatenate(seen), VOCAB)[:2] == (1.0, 1.0)


@pytest.mark.parametrize("size", [1, 16])
def test_tied_table_by_rank_and_by_background(snips, size):
    """A bag that predicts every next token with its own table: all rows move."""

    def loss(table, batch):
        def one(tokens, length):
            states = jnp.tanh(table[tokens]) * 4.0
            log_probs = jax.nn.log_softmax(states @ table.T, axis=-1)
            nexts = jnp.roll(tokens, -1)
            picked = jnp.take_along_axis(log_probs, nexts[:, None], axis=1)[:, 0]
            real = jnp.arange(T) < length - 1
            return -jnp.sum(jnp.where(real, picked, 0.0))

        losses = jax.vmap(one)(batch["tokens"], batch["length"])
        return jnp.sum(jnp.where(batch["mask"], losses, 0.0))

    table = jax.random.normal(jax.random.key(0), (VOCAB, 16)) * 0.1
    batch = _batch(snips, 3, size)
    update = jit(jax.grad(loss))(table, batch)
    true = _real(batch)
    assert rows.nonzero(update).tokens.size == VOCAB
    for claim in (
        rows.largest(update, np.unique(true).size),
        rows.above_background(update),
    ):
        found = rows.score(claim, true, VOCAB)
        assert min(found.precision, found.recall) >= 0.95, found


def test_positions_give_the_longest_length(snips):
    task = transformer.classifier(
        VOCAB, 7, max_length=T, width=8, depth=1, heads=2, pooling="mean"
    )
    params = jit(task.init)(jax.random.key(0))
    batch = _batch(snips, 5, 4)
    grads = _gradient(task)(params, batch)
    positions = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if "position" in jax.tree_util.keystr(path)
    ]
    assert len(positions) == 1
    longest = int(batch["length"][:4].max())
    assert longest < T
    assert rows.longest_length(positions[0]) == longest
    shifted = np.concatenate([np.zeros((2, 8)), positions[0]])
    assert rows.longest_length(shifted, offset=2) == longest
    assert rows.longest_length(np.zeros((4, 8))) == 0


def test_score_is_that_of_sets():
    claim = rows.Claim(np.array([4, 2, 9]), np.array([3.0, 2.0, 1.0]))
    found = rows.score(claim, [2, 2, 4, 5, 6], vocab_size=30)
    assert found == (2 / 3, 2 / 4, 3 / 30, 3, 4)


def test_what_does_not_fit_is_refused():
    table = np.zeros((4, 2))
    with pytest.raises(ValueError, match=r"update=\[4\] is not the shape"):
        rows.nonzero(np.zeros(4))
    with pytest.raises(ValueError, match=r"update\[1\]='nan'"):
        rows.nonzero(np.array([[0.0, 1.0], [np.nan, 0.0]]))
    with pytest.raises(ValueError, match="count=5 must be <= V = 4"):
        rows.largest(table, 5)
    with pytest.raises(ValueError, match=r"true_tokens=\[7\] must be ids in \[0, 4\)"):
        rows.score(rows.nonzero(table), [7], 4)
    with pytest.raises(ValueError, match="noise_stddev=0"):
        rows.above_noise(table, 0)
    update = {"w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match="l2_clip_norm=None leaves the noise"):
        sight.server(update, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="key=None leaves the noise"):
        sight.server(update, noise_multiplier=1.0, l2_clip_norm=1.0)


def test_server_clips_every_client_and_sums():
    update = {"w": jnp.array([[3.0, 4.0], [0.3, 0.4]])}
    alone = sight.server(update, l2_clip_norm=1.0)
    np.testing.assert_allclose(alone["w"], [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6)
    total = sight.server(update, l2_clip_norm=1.0, secure_aggregation=True)
    np.testing.assert_allclose(total["w"], [0.9, 1.2], rtol=1e-6)
