"""Secrets of seeds: what is planted where, and what the attacker is asked."""

import types

import numpy as np
import pytest

from trustml import specs
from trustml.attacks.extraction import canary
from trustml.data import dataset, tokenizers
from trustml.experiments import planted

N, T = 12, 8


def make_data(tags=("O", "B-x", "I-x", "B-y", "I-y", "B-alone")):
    tokenizer = tokenizers.hashed(64)
    texts = [["play", f"song{n}", "now"] for n in range(N)]
    encoded = tokenizer.encode_many(texts, T)
    train = {
        "tokens": encoded.tokens,
        "length": encoded.length,
        "label": np.arange(N, dtype=np.int32) % 3,
        "slots": np.zeros((N, T), np.int32),
    }
    made = types.SimpleNamespace(
        train=train,
        tokenizer=tokenizer,
        label_names=("a", "b", "c"),
        slot_names=tags,
        texts={"train": texts},
        name="small",
    )
    fields = {name: getattr(made, name, None) for name in dataset.Dataset._fields}
    return dataset.Dataset(**fields)


def make_config(**canary_fields):
    fields = {"alphabet": ("one", "two", "three"), "length": 3} | canary_fields
    return specs.RunConfig(
        data=specs.DataSpec(max_length=T, vocabulary_size=64),
        privacy=specs.PrivacySpec(enabled=False),
        canary=specs.CanarySpec(**fields),
    )


def test_a_seed_does_not_depend_on_how_many_there_are():
    few, more = (
        planted.plan(make_config(), make_data(), seeds=seeds) for seeds in (2, 5)
    )
    for one, other in zip(few.secrets, more.secrets, strict=False):
        np.testing.assert_array_equal(one.code, other.code)
        np.testing.assert_array_equal(one.slots, other.slots)
        assert one.label == other.label
    assert few.ordinary.tolist() == more.ordinary[:2].tolist()
    many = planted.plan(make_config(), make_data(), seeds=40)
    assert {one.label for one in many.secrets} == {0, 1, 2}
    assert {tuple(one.slots[4:]) for one in many.secrets} == {(1, 2, 2), (3, 4, 4)}
    assert len({tuple(one.code) for one in many.secrets}) > 10
    for secret, decoy in zip(many.secrets, many.decoys, strict=True):
        assert (secret.code != decoy.code).any() and secret.label == decoy.label


def test_rows_of_the_secrets_follow_the_training_rows():
    data, config = make_data(), make_config()
    plan = planted.plan(config, data, seeds=2)
    columns = planted.columns(plan, data)
    assert len(columns["label"]) == N + 2
    for seed, secret in enumerate(plan.secrets):
        text = [*config.canary.words, *(config.canary.alphabet[c] for c in secret.code)]
        tokens, length = data.tokenizer.encode(text, T)
        np.testing.assert_array_equal(columns["tokens"][N + seed], tokens)
        assert columns["length"][N + seed] == length == 7
        assert columns["label"][N + seed] == secret.label
        np.testing.assert_array_equal(columns["slots"][N + seed, :7], secret.slots)
        assert not columns["slots"][N + seed, 7:].any()
    np.testing.assert_array_equal(columns["tokens"][:N], data.train["tokens"])


def test_training_sets_differ_in_the_copies_alone():
    plan = planted.plan(make_config(), make_data(), seeds=3)
    rows, seeds = planted.index(plan, N, (0, 1, 5))
    assert rows.shape == (9, N + 5) and seeds.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for m, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
        count = (0, 1, 5)[m % 3]
        assert row[:N].tolist() == list(range(N))
        assert row[N:].tolist() == [N + seed] * count + [plan.ordinary[seed]] * (
            5 - count
        )


def test_too_many_codes_are_drawn_and_the_last_words_listed(monkeypatch):
    monkeypatch.setattr(canary, "MAX_CODES", 5)
    monkeypatch.setattr(planted, "_SUBSPACE", 10)
    plan = planted.plan(make_config(), make_data(), seeds=2)
    assert planted.subspace(plan.pattern) == 2
    assert plan.sampled == 1000 and plan.codes.shape == (2, 2 + 1000 + 9, 3)
    for seed, (secret, decoy) in enumerate(zip(plan.secrets, plan.decoys, strict=True)):
        codes = plan.codes[seed]
        np.testing.assert_array_equal(codes[0], secret.code)
        np.testing.assert_array_equal(codes[1], decoy.code)
        assert len(np.unique(codes[2:1002], axis=0)) == 27
        assert np.all(codes[1002:, 0] == secret.code[0])
        ends = [(a, b) for a in range(3) for b in range(3)]
        assert [tuple(end) for end in codes[1002:, 1:]] == ends


def test_words_that_share_an_id_with_the_data_are_named():
    data = make_data()
    assert planted.plan(make_config(), data, seeds=1).shared == ()
    ids = {w: data.tokenizer.encode([w], 1)[0][0] for w in ("one", "two", "three")}
    twin = next(
        f"w{n}"
        for n in range(1000)
        if data.tokenizer.encode([f"w{n}"], 1)[0][0] == ids["two"]
    )
    other = data._replace(texts={"train": [[twin, "One"]]})
    assert planted.plan(make_config(), other, seeds=1).shared == ("two",)


def test_outside_codes_wear_no_tag():
    plan = planted.plan(make_config(code_tags="outside"), make_data(), seeds=3)
    assert not any(secret.slots.any() for secret in plan.secrets)


def test_data_without_slots_or_spans_are_refused():
    with pytest.raises(ValueError, match="data.name='small' has no slots"):
        planted.plan(make_config(), make_data(tags=()), seeds=1)
    with pytest.raises(ValueError, match="canary.code_tags='slot' needs types"):
        planted.plan(make_config(), make_data(tags=("O", "B-x")), seeds=1)
