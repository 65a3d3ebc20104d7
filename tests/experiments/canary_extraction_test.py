"""Experiment `canary_extraction`: whole small runs, and what the scores are scores of.

The study on SNIPS, 16 seeds, is the config's: configs/canary_extraction.py.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml import config as config_lib
from trustml.attacks import shadows
from trustml.attacks.extraction import canary
from trustml.experiments import build, canary_extraction, planted
from trustml.models import tagging

PLACES = ("york", "rome", "oslo")


def make_config(tmp_path, **changes):
    file = tmp_path / "small.jsonl"
    rows = []
    for n in range(48):
        intent, place = ("fly", "stay")[n % 2], PLACES[n % 3]
        rows.append(
            {
                "tokens": f"{intent} in new {place} {n % 5}",
                "slots": "O O B-city I-city O",
                "label": intent,
            }
        )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = config_lib.default()
    cfg.experiment = "canary_extraction"
    cfg.data.path = str(file)
    cfg.data.tokens_column, cfg.data.slots_column = "tokens", "slots"
    cfg.data.max_length, cfg.data.vocabulary_size = 7, 256
    cfg.model.name, cfg.model.width = "gru", 4
    cfg.optimizer.name, cfg.optimizer.learning_rate = "sgd", 0.5
    cfg.privacy.enabled = False
    cfg.train.steps, cfg.train.batch_size, cfg.train.num_devices = 6, 8, 1
    cfg.attack.group_size = 2
    cfg.canary.words, cfg.canary.alphabet = ("code", "is"), ("one", "two", "three")
    cfg.canary.length, cfg.canary.seeds, cfg.canary.copies = 2, 2, (0, 4)
    cfg.canary.restarts, cfg.canary.relaxed_steps = 2, 3
    cfg.canary.defence_copies, cfg.canary.defence_seeds = (0, 4), 1
    for name, value in changes.items():
        cfg.update_from_flattened_dict({name.replace("__", "."): value})
    return config_lib.from_config_dict(cfg)


PRIVATE = {
    "privacy__enabled": True,
    "privacy__noise_multiplier": 2.0,
    "privacy__noise_seed": 1,
    "privacy__accountant": "rdp",
    "privacy__method": "vmap",
}


# Programs here run once: compiling them well costs more than it gives.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def first(config):
    data = build.dataset(config)
    (variant, *_) = canary_extraction.variants(config)
    return canary_extraction.prepare(variant, data), data


def test_a_run_from_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=FAST))
    changes = PRIVATE | {
        "canary__defences": ("dp_sgd",),
        "canary__attacks": ("exhaustive", "relaxed"),
    }
    config = make_config(tmp_path, **changes)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam breaks the strict one
        path = canary_extraction.run(config, tmp_path / "out")
    page = path.read_text()
    assert path.name == "report.html" and "Can a secret be read out" in page
    assert "too few for a claim" in page and "k times is k examples" in page
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    plain, private = numbers["canaries"]
    assert numbers["codes"] == 9 and plain["epsilon"] is None
    assert private["name"] == "dp_sgd" and private["epsilon"] > 0
    assert private["seeds"] == 1 and plain["seeds"] == 2
    assert [row["copies"] for row in plain["rows"]] == [0, 4]
    for row in plain["rows"]:
        ways = row["guesses"]
        assert set(ways) == {"exhaustive", "relaxed"}
        assert 0 <= row["slot_f1"]["value"] <= 1
    said = capsys.readouterr().out
    assert "undefended" in said and "dp_sgd" in said
    assert canary_extraction.run(config, tmp_path / "out") == path
    assert "finished already" in capsys.readouterr().out


def test_scores_are_the_loss_of_training_and_predictions_those_of_the_task(tmp_path):
    config = make_config(tmp_path, canary__attacks=("exhaustive",))
    ready, data = first(config)
    init = jax.jit(jax.vmap(ready.task.init), compiler_options=FAST)
    params = init(jax.random.split(jax.random.key(3), 2))
    seeds = jnp.array([1, 0])
    score = jax.jit(canary_extraction.scores(ready, data), compiler_options=FAST)
    asked = score((params, seeds), ready.columns)
    _, intents, tags, losses, guesses = asked
    assert losses.shape == (2, 9) and guesses.shape == (2, 0, 2)
    size = data.test["slots"].shape
    assert tags.shape == (2, *size) and intents.shape == (2, size[0])
    loss = jax.jit(jax.vmap(ready.task.loss, (None, 0, None)), compiler_options=FAST)
    predict = jax.jit(jax.vmap(ready.task.predict, (None, 0)), compiler_options=FAST)
    for model, seed in enumerate(seeds.tolist()):
        own = jax.tree.map(lambda x, model=model: x[model], params)
        secret = ready.planted.secrets[seed]
        rows = [
            canary.example(ready.planted.pattern, secret._replace(code=code))
            for code in ready.planted.codes
        ]
        rows = jax.tree.map(lambda *x: np.stack(x), *rows)
        expected = loss(own, rows, jax.random.key(0))
        np.testing.assert_allclose(losses[model], expected, rtol=1e-5)
        batch = predict(own, data.test)
        guess = np.argmax(tagging.slot_log_probs(batch), -1)
        np.testing.assert_array_equal(tags[model], guess)
        np.testing.assert_array_equal(intents[model], np.argmax(batch.label, -1))


def test_models_of_a_seed_differ_by_their_copies_alone(tmp_path):
    ready, _ = first(make_config(tmp_path))
    turned, _ = first(make_config(tmp_path, canary__copies=(4, 0)))
    train = jax.jit(ready.make_train(None), compiler_options=FAST)

    def trained(ready, number):
        own = shadows.take(ready.own, np.array(number))
        return train(ready.columns, own)

    control, seed = trained(ready, 0)
    again, same = trained(turned, 1)
    assert seed == same == 0
    jax.tree.map(np.testing.assert_array_equal, control, again)
    planted_in, _ = trained(ready, 1)
    _, other = trained(ready, 2)
    assert other == 1
    apart = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), control, planted_in)
    assert max(jax.tree.leaves(apart)) > 1e-4


def test_variants_change_what_their_names_say(tmp_path):
    names = ("dropout", "early_stopping", "characters", "combined", "dp_sgd")
    config = make_config(
        tmp_path, **PRIVATE, canary__defences=names, baseline__steps=40
    )
    found = {one.name: one for one in canary_extraction.variants(config)}
    assert tuple(found) == ("undefended", *names)
    plain = found["undefended"].config
    assert plain.train.steps == 40 and not plain.privacy.enabled
    assert found["dropout"].config.model.dropout == 0.3
    assert found["early_stopping"].config.train.steps == 10
    assert found["characters"].config.model.characters == 2048
    every = found["combined"].config
    assert (every.model.dropout, every.model.characters) == (0.3, 2048)
    assert every.train.steps == 10 and not every.privacy.enabled
    private = found["dp_sgd"].config
    assert private.privacy.enabled and private.train.steps == 6
    assert found["dp_sgd"].seeds == 1 and found["undefended"].seeds == 2


def test_spelled_models_are_attacked_through_their_ngrams(tmp_path):
    config = make_config(
        tmp_path, canary__defences=("characters",), canary__attacks=("exhaustive",)
    )
    data = build.dataset(config)
    variant = canary_extraction.variants(config)[1]
    ready = canary_extraction.prepare(variant, data)
    params = jax.jit(ready.task.init, compiler_options=FAST)(jax.random.key(0))
    example = {"tokens": jnp.array(data.tokenizer.encode(["two"], 1)[0])}
    row = ready.task.embed(params, example | {"length": jnp.array(1)})
    assert np.abs(row).sum() > 0, "words of codes are spelled though no text has them"
    score = jax.jit(canary_extraction.scores(ready, data), compiler_options=FAST)
    group = (jax.tree.map(lambda x: x[None], params), jnp.array([0]))
    asked = score(group, ready.columns)
    assert len(np.unique(np.asarray(asked[3]))) == 9


def test_fingerprint_follows_secrets_and_settings(tmp_path):
    def mark(**changes):
        return first(make_config(tmp_path, **changes))[0].fingerprint

    marks = [mark(), mark(seed=1), mark(canary__copies=(0, 3)), mark(canary__length=3)]
    assert len(set(marks)) == 4 and mark() == marks[0]


def test_long_codes_have_losses_of_their_own_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(canary, "MAX_CODES", 5)
    monkeypatch.setattr(planted, "_SUBSPACE", 3)
    config = make_config(tmp_path, canary__attacks=("beam", "descent"))
    ready, data = first(config)
    assert ready.planted.codes.shape == (2, 2 + 1000 + 3, 2)
    init = jax.jit(jax.vmap(ready.task.init), compiler_options=FAST)
    params = init(jax.random.split(jax.random.key(0), 1))
    score = jax.jit(canary_extraction.scores(ready, data), compiler_options=FAST)
    for seed, secret in enumerate(ready.planted.secrets):
        *_, losses, guesses = score((params, jnp.array([seed])), ready.columns)
        losses = losses[0]
        assert guesses.shape == (1, 2, 2)
        best = losses[2:1002].min()  # a thousand draws of nine codes hold them all
        at_best = ready.planted.codes[seed][2 + int(losses[2:1002].argmin())]
        np.testing.assert_array_equal(guesses[0, 1], at_best)
        assert losses[0] >= best
        at = 1002 + int(secret.code[-1])
        np.testing.assert_allclose(losses[0], losses[at], rtol=1e-6)


def test_a_batch_larger_than_a_training_set_is_refused(tmp_path):
    config = make_config(tmp_path, train__batch_size=60)
    with pytest.raises(ValueError, match="train.batch_size=60 must be at most the"):
        first(config)
