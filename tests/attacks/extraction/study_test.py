"""Canaries of SNIPS in a joint bi-GRU: exposure against copies, beside both controls.

    python -m pytest -m slow -s tests/attacks/extraction/study_test.py

prints the table. All models of a seed are trained at once, by vmap over index matrices:
k copies of the canary and 100 - k of an ordinary row, so that sizes and order match.
"""

import gzip
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import trustml
from trustml import rng
from trustml.attacks import exposure
from trustml.attacks.extraction import canary, relaxed, scoring
from trustml.data import tokenizers
from trustml.models import gru

FOLDER = pathlib.Path(trustml.__file__).parent / "data/files/snips"
VOCAB, T, COPIES, MOST = 8192, 16, (0, 1, 10, 100), 100
EPOCHS, BATCH, SEEDS = 12, 64, int(os.environ.get("TRUSTML_STUDY_SEEDS", "3"))


def _load():
    splits = {}
    for name in ("train", "test"):
        with gzip.open(FOLDER / f"{name}.jsonl.gz", "rt") as lines:
            splits[name] = [json.loads(line) for line in lines]
    intents = sorted({row["intent"] for row in splits["train"]})
    tags = sorted({tag for row in splits["train"] for tag in row["slots"]} - {"O"})
    tags = {tag: i for i, tag in enumerate(["O", *tags])}
    columns = {}
    for name, found in splits.items():
        encoded = tokenizers.hashed(VOCAB).encode_many([r["tokens"] for r in found], T)
        slots = np.zeros_like(encoded.tokens)
        for n, row in enumerate(found):
            known = [tags.get(tag, 0) for tag in row["slots"][:T]]
            slots[n, : len(known)] = known
        columns[name] = {
            "tokens": encoded.tokens,
            "length": encoded.length,
            "label": np.array([intents.index(r["intent"]) for r in found], np.int32),
            "slots": slots,
        }
    return columns, len(intents), tags


def _trainer(task, size):
    tx, steps = optax.adam(2e-3), size // BATCH

    def one_model(columns, rows, key):
        params = task.init(jax.random.fold_in(key, 0))

        def step(carry, chosen):
            params, state = carry
            batch = {name: column[rows[chosen]] for name, column in columns.items()}

            def loss(params):
                losses = jax.vmap(task.loss, (None, 0, None))(
                    params, batch, jax.random.key(0)
                )
                return jnp.mean(losses)

            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        def epoch(carry, number):
            own = jax.random.fold_in(key, number + 1)
            order = jax.random.permutation(own, size)[: steps * BATCH]
            return jax.lax.scan(step, carry, order.reshape(steps, BATCH))

        numbers = jnp.arange(EPOCHS, dtype=jnp.uint32)
        return jax.lax.scan(epoch, (params, tx.init(params)), numbers)[0][0]

    return jax.jit(jax.vmap(one_model, (None, 0, None)))


def _digits():
    names = "zero one two three four five six seven eight nine".split()
    return tokenizers.hashed(VOCAB).encode_many([names], 10).tokens[0]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_exposure_grows_with_copies():
    """Exposure over its control: 5 bits in the median at 1 copy, 8 at 10.

    Full recovery, a share of seeds, is asserted from 16 seeds on only: of three seeds
    one was recovered at 100 copies, which says neither 0.1 nor 0.9.
    TRUSTML_STUDY_SEEDS=16 asks for them.
    """
    columns, num_labels, tags = _load()
    train, test = columns["train"], columns["test"]
    task = gru.task(VOCAB, num_labels, len(tags))
    words = tokenizers.hashed(VOCAB).encode_many([["my", "pin", "code", "is"]], 4)
    template = [*words.tokens[0].tolist(), *[canary.UNKNOWN] * 4]
    pattern = canary.pattern(template, _digits(), max_length=T)
    kinds = sorted({tag[2:] for tag in tags if tag.startswith("B-")})
    kinds = [kind for kind in kinds if f"I-{kind}" in tags]
    code_tags = [[tags[f"B-{kind}"], *[tags[f"I-{kind}"]] * 3] for kind in kinds]
    size = len(train["label"]) + MOST
    run = _trainer(task, size)
    score = jax.jit(jax.vmap(scoring.scorer(task, pattern), (0, None, None)))
    attack = jax.jit(jax.vmap(relaxed.gumbel(task, pattern), (0, None, None)))
    predict = jax.jit(jax.vmap(jax.vmap(task.predict, (None, 0)), (0, None)))
    codes = canary.all_codes(pattern)
    table = {name: {k: [] for k in COPIES} for name in ("true", "decoy", "skew")}
    digits = {name: {k: [] for k in COPIES} for name in ("exhaustive", "relaxed")}
    for seed in range(SEEDS):
        root = rng.root(seed=seed)
        secret = canary.draw(root, pattern, num_labels=num_labels, code_tags=code_tags)
        other = canary.decoy(root, pattern, secret)
        both = canary.insert(train, canary.example(pattern, secret), 1)
        both = jax.tree.map(jnp.asarray, both)
        ordinary, end = seed, len(train["label"])
        rows = np.array(
            [[*range(end), *[end] * k, *[ordinary] * (MOST - k)] for k in COPIES]
        )
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            params = run(both, jnp.asarray(rows), jax.random.key(seed))
            target = canary.target(pattern, secret)
            losses = np.asarray(score(params, target, codes))
            found = attack(params, target, jax.random.key(1000 + seed))
        guess = predict(params, jax.tree.map(jnp.asarray, test))
        right = np.argmax(np.asarray(guess.label), -1) == test["label"]
        accuracy = right.mean(axis=1)
        print(f"seed {seed}: intent accuracy {np.round(accuracy, 3)}", flush=True)
        own, fresh = (canary.index(pattern, s.code) for s in (secret, other))
        sample = np.random.default_rng(seed).choice(len(codes), 1000)
        for m, k in enumerate(COPIES):
            table["true"][k].append(exposure.exact(losses[m], own))
            table["decoy"][k].append(exposure.exact(losses[m], fresh))
            skew = exposure.extrapolated(
                float(losses[m, own]), losses[m, sample], candidates=len(codes)
            )
            table["skew"][k].append(skew)
            for name, code in (
                ("exhaustive", codes[np.argmin(losses[m])]),
                ("relaxed", np.asarray(found.codes[m, 0])),
            ):
                digits[name][k].append(exposure.recovery(code, secret.code, 10))
            line = [round(table[n][k][-1].bits, 2) for n in ("true", "decoy")]
            print(
                f"  {k:4d} copies: bits {line[0]:6.2f} decoy {line[1]:6.2f} "
                f"skew-normal {skew:6.2f}  hamming exhaustive "
                f"{digits['exhaustive'][k][-1].hamming} relaxed "
                f"{digits['relaxed'][k][-1].hamming}",
                flush=True,
            )
    medians = {}
    for k in COPIES[1:]:
        found = exposure.summarise(
            table["true"][k], absent=table["true"][0], decoy=table["decoy"][k]
        )
        medians[k] = found
        shares = {
            name: (
                np.mean([r.full for r in digits[name][k]]),
                np.mean([r.per_position for r in digits[name][k]]),
            )
            for name in digits
        }
        print(f"{k} copies: {found}\n  full recovery, digits right: {shares}")
    assert medians[1].delta_median >= 5
    assert medians[10].delta_median >= 8
    if SEEDS >= 16:
        assert medians[100].recovered >= 0.5
    for k in COPIES[1:]:
        right = {n: np.mean([r.per_position for r in digits[n][k]]) for n in digits}
        assert right["exhaustive"] >= right["relaxed"] - 0.05
