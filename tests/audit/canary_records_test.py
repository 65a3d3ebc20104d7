"""Canaries of every kind: their form, their coins, and that they get into the data."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml import rng
from trustml import task as task_lib
from trustml.audit import canaries, canary_records
from trustml.models import mlp

ROOT = rng.root(3)
CLASSES, N = 4, 60
TASK = mlp.task(3, CLASSES, hidden=(4,))


def table():
    generator = np.random.default_rng(0)
    return {
        "features": generator.normal(2.0, 0.5, (N, 3)).astype(np.float32),
        "label": (np.arange(N) % CLASSES).astype(np.int32),
    }


def texts():
    generator = np.random.default_rng(0)
    length = generator.integers(2, 7, N).astype(np.int32)
    tokens = generator.integers(5, 50, (N, 6)).astype(np.int32)
    tokens[np.arange(6) >= length[:, None]] = 0
    return {"tokens": tokens, "length": length, "label": table()["label"]}


def _text_logits(params, example):
    return jax.nn.log_softmax(params["w"] * example["length"].astype(jnp.float32))


TEXT_TASK = task_lib.classification(lambda key: {"w": jnp.zeros(CLASSES)}, _text_logits)
TEMPLATE = canary_records.Template(
    {
        "tokens": np.array([5, 6, 0, 0, 7, 0], np.int32),
        "length": np.int32(5),
        "label": np.int32(2),
    },
    positions=(2, 3),
    alphabet=np.arange(30, 40),
)


def made(kind, count=40, root=ROOT):
    if kind == "text":
        return canary_records.make(
            root, kind, count, TEXT_TASK, texts(), template=TEMPLATE
        )
    return canary_records.make(root, kind, count, TASK, table())


@pytest.mark.parametrize("kind", canary_records.KINDS)
def test_canaries_have_the_form_of_the_data_and_come_again_from_the_same_root(kind):
    data = texts() if kind == "text" else table()
    one, again = made(kind), made(kind)
    for name, column in data.items():
        assert one.examples[name].dtype == column.dtype
        assert one.examples[name].shape == (40, *column.shape[1:])
    jax.tree.map(np.testing.assert_array_equal, one.examples, again.examples)
    np.testing.assert_array_equal(one.coins, again.coins)
    np.testing.assert_array_equal(one.coins, canaries.coins(ROOT, 40))
    assert one.key_id == again.key_id and one.kind == kind
    other = made(kind, root=rng.root(4))
    assert other.key_id != one.key_id
    assert canary_records.digest(other) != canary_records.digest(one)


@pytest.mark.parametrize("kind", canary_records.KINDS)
@pytest.mark.parametrize("copies", [1, 3])
def test_insert_adds_those_that_are_in(kind, copies):
    data = texts() if kind == "text" else table()
    record = made(kind)
    whole = canary_records.insert(data, record, copies=copies)
    chosen = np.flatnonzero(record.coins)
    for name, column in data.items():
        np.testing.assert_array_equal(whole[name][:N], column)
        rows = whole[name][N:].reshape(len(chosen), copies, *column.shape[1:])
        for copy in range(copies):
            np.testing.assert_array_equal(rows[:, copy], record.examples[name][chosen])
    if kind == "gradient" and copies == 1:
        want = canaries.insert(data, record.coins)
        assert set(want) == set(whole)
        jax.tree.map(np.testing.assert_array_equal, dict(whole), dict(want))


def test_noise_has_the_spread_of_the_data_and_uniform_labels():
    record = made("random", 4000)
    features, label = record.examples["features"], record.examples["label"]
    data = table()["features"]
    # 12,000 normals: 5 standard errors of mean and spread are 5% and 3% of the spread.
    assert abs(features.mean() - data.mean()) < 0.05 * data.std()
    assert abs(features.std() / data.std() - 1) < 0.04
    counts = np.bincount(label, minlength=CLASSES)
    # 5 standard errors of 4,000 labels in 4 classes.
    assert len(counts) == CLASSES and np.all(np.abs(counts - 1000) < 137)
    assert abs(np.corrcoef(label, record.coins)[0, 1]) < 0.08


def test_noise_in_texts_leaves_padding_alone():
    record = canary_records.make(ROOT, "random", 50, TEXT_TASK, texts())
    tokens, length = record.examples["tokens"], record.examples["length"]
    inside = np.arange(6) < length[:, None]
    assert not np.any(tokens[~inside]) and len(np.unique(tokens[inside])) > 20
    assert np.all(np.isin(length, texts()["length"]))


def test_labels_are_wrong_and_inputs_natural():
    record = made("mislabelled", N)
    data = table()
    rows = {tuple(x): y for x, y in zip(data["features"], data["label"], strict=True)}
    found = [
        (rows[tuple(x)], y)
        for x, y in zip(
            record.examples["features"], record.examples["label"], strict=True
        )
    ]
    assert all(right != wrong and 0 <= wrong < CLASSES for right, wrong in found)
    assert len({(w - r) % CLASSES for r, w in found}) == CLASSES - 1
    assert len(np.unique(record.examples["features"], axis=0)) == N


def test_secrets_are_distinct_tokens_of_the_alphabet():
    record = made("text", 100)  # all there are
    tokens = record.examples["tokens"]
    assert len(np.unique(tokens[:, 2:4], axis=0)) == 100
    assert tokens[:, 2:4].min() == 30 and tokens[:, 2:4].max() == 39
    for position in (0, 1, 4, 5):
        assert np.all(tokens[:, position] == TEMPLATE.example["tokens"][position])
    assert np.all(record.examples["label"] == 2)


def test_coins_are_stored_and_a_change_is_noticed():
    record = made("mislabelled", 37)
    stored = json.loads(json.dumps(canary_records.as_dict(record)))
    np.testing.assert_array_equal(canary_records.coins_of(stored, record), record.coins)
    assert stored["count"] == 37 and stored["digest"] == canary_records.digest(record)
    flipped = "0" if stored["coins"][0] != "0" else "1"
    lie = {**stored, "coins": flipped + stored["coins"][1:]}
    with pytest.raises(ValueError, match="is not that of these canaries"):
        canary_records.coins_of(lie, record)
    moved = dict(record.examples, label=record.examples["label"] * 0)
    with pytest.raises(ValueError, match="is not that of these canaries"):
        canary_records.coins_of(stored, record._replace(examples=moved))


def call(kind, count=4, task=TASK, data=None, **options):
    return canary_records.make(ROOT, kind, count, task, data or table(), **options)


NO_LABEL = {"features": table()["features"]}
NO_ROWS = {name: column[:0] for name, column in table().items()}
FAR = TEMPLATE._replace(positions=(2, 6))
BAD = [
    ("kind", lambda: call("randon"), "did you mean 'random'"),
    ("count", lambda: call("random", 0), "count=0"),
    ("no_rows", lambda: call("random", data=NO_ROWS), "has no example"),
    ("no_label", lambda: call("mislabelled", data=NO_LABEL), "no field 'label'"),
    ("few_inputs", lambda: call("mislabelled", N + 1), "more than the 60 inputs"),
    ("no_template", lambda: call("text", 4, TEXT_TASK, texts()), "template=None"),
    ("template", lambda: call("random", template=TEMPLATE), "template='tokens'"),
    (
        "few_secrets",
        lambda: call("text", 101, TEXT_TASK, texts(), template=TEMPLATE),
        "more than the 100 secrets",
    ),
    (
        "position",
        lambda: call("text", 4, TEXT_TASK, texts(), template=FAR),
        "template.positions",
    ),
    ("fields", lambda: call("text", template=TEMPLATE), "template.example"),
    (
        "other_data",
        lambda: canary_records.insert(texts(), made("random")),
        "has not the fields",
    ),
    (
        "twice",
        lambda: canary_records.insert(
            canary_records.insert(table(), made("gradient")), made("gradient")
        ),
        "has 'canary_id' already",
    ),
    (
        "copies",
        lambda: canary_records.insert(table(), made("random"), copies=0),
        "copies=0",
    ),
]


@pytest.mark.parametrize("name,call,sentence", BAD, ids=[b[0] for b in BAD])
def test_bad_arguments_get_a_sentence(name, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
