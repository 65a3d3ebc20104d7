"""Masked language models against the outputs of PyTorch (made by `golden/make.py`)."""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors import numpy as safetensors_numpy

from trustml.models import bert, masked_lm

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
FAMILIES = ("bert", "roberta", "distilbert")
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)


def _batch(golden):
    tokens, lengths = golden["tokens"], golden["lengths"]
    real = np.arange(tokens.shape[1])[None, :] < lengths[:, None]
    batch = {"tokens": np.where(real, tokens, 0), "length": lengths}
    if "segments" in golden:
        batch["segments"] = golden["segments"]
    return jax.tree.map(jnp.asarray, batch), real


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_equal_pytorch(family):
    directory = GOLDEN / f"{family}_mlm"
    golden = dict(np.load(directory / "golden.npz"))
    model = masked_lm.load(directory)
    assert model.config.family == family
    batch, real = _batch(golden)
    places = jnp.arange(golden["tokens"].shape[1])
    run = jit(jax.vmap(model.log_probs, (None, 0, None)))
    found = np.asarray(run(model.params, batch, places))
    np.testing.assert_allclose(found[real], golden["log_probs"][real], atol=1e-4)
    some = np.asarray(run(model.params, batch, places[jnp.array([4, 0])]))
    np.testing.assert_allclose(some, found[:, [4, 0]], atol=1e-5)


def test_next_sentence_equals_pytorch():
    golden = dict(np.load(GOLDEN / "bert_mlm" / "golden.npz"))
    model = masked_lm.load(GOLDEN / "bert_mlm")
    batch, _ = _batch(golden)
    found = jit(jax.vmap(model.follows, (None, 0)))(model.params, batch)
    expected = golden["next"][:, 0] - golden["next"][:, 1]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected).max() > 0.1
    alone = {k: v for k, v in batch.items() if k != "segments"}
    other = jit(jax.vmap(model.follows, (None, 0)))(model.params, alone)
    assert np.abs(np.asarray(other - found)).max() > 0.01  # segments matter
    assert masked_lm.load(GOLDEN / "roberta_mlm").follows is None


def _edited(tmp_path, family="bert", tensors=None):
    directory = tmp_path / "copy"
    shutil.copytree(GOLDEN / f"{family}_mlm", directory)
    if tensors:
        path = directory / "model.safetensors"
        old = safetensors_numpy.load_file(path)
        safetensors_numpy.save_file(tensors(old), path)
    return directory


def test_tied_copies_and_old_names_are_understood(tmp_path):
    def rename(old):
        new = {}
        for key, value in old.items():
            key = key.replace("LayerNorm.weight", "LayerNorm.gamma")
            new[key.replace("LayerNorm.bias", "LayerNorm.beta")] = value
        words = old["bert.embeddings.word_embeddings.weight"]
        return new | {
            "cls.predictions.decoder.weight": words.copy(),
            "cls.predictions.decoder.bias": old["cls.predictions.bias"].copy(),
        }

    model = masked_lm.load(_edited(tmp_path, tensors=rename))
    expected = masked_lm.load(GOLDEN / "bert_mlm").params
    jax.tree.map(np.testing.assert_array_equal, model.params, expected)


def _dropped(old):
    return {k: v for k, v in old.items() if not k.endswith("transform.dense.bias")}


def _renamed(old):
    return {
        k.replace("predictions.bias", "predictions.shift"): v for k, v in old.items()
    }


def _no_head(old):
    return {k: v for k, v in old.items() if not k.startswith("cls.")}


def _untied(old):
    key = "cls.predictions.decoder.weight"
    return old | {key: old["bert.embeddings.word_embeddings.weight"] * np.float16(2)}


def _narrow(old):
    return old | {"cls.predictions.bias": old["cls.predictions.bias"][:-1]}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (_dropped, ["missing 1 (cls.predictions.transform.dense.bias)", "none"]),
        (_renamed, ["missing 1 (cls.predictions.bias)", "1 (cls.predictions.shift)"]),
        (_no_head, ["missing 5", "cls.predictions.transform", "unexpected none"]),
        (_untied, ["decoder.weight", "word_embeddings", "tie_word_embeddings"]),
        (_narrow, ["cls.predictions.bias", "(60,)", "config.json"]),
    ],
)
def test_wrong_heads_are_refused(tmp_path, tensors, words):
    directory = _edited(tmp_path, tensors=tensors)
    with pytest.raises(ValueError) as error:
        masked_lm.load(directory)
    for word in words:
        assert word in str(error.value), error.value


def test_the_mask_is_found_in_the_tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        masked_lm.mask_id(tmp_path)
    tokens = [{"id": 0, "content": "[PAD]"}, {"id": 103, "content": "[MASK]"}]
    path.write_text(json.dumps({"added_tokens": tokens}))
    assert masked_lm.mask_id(tmp_path) == 103
    path.write_text(json.dumps({"added_tokens": tokens[:1]}))
    with pytest.raises(ValueError, match="<mask>"):
        masked_lm.mask_id(tmp_path)


def _small(**options):
    config = masked_lm.config(23, width=16, heads=2, depth=1, max_length=12)
    return config, masked_lm.task(config, mask_id=2, special_ids=(1,), **options)


def test_loss_is_over_the_chosen_tokens():
    """With a rate of nearly 1 and a network that sees nothing all tokens count."""
    config, task = _small(mask_rate=0.999999)
    params = task.init(jax.random.key(0))
    bare = jax.tree.map(jnp.zeros_like, params)
    bias = jnp.linspace(-1.0, 1.0, 23)
    bare = bare | {"output_bias": bias}
    tokens = jnp.array([1, 5, 9, 7, 1, 0, 0])
    example = {"tokens": tokens, "length": jnp.int32(5)}
    loss = jit(task.loss)
    said = jax.nn.log_softmax(bias)[tokens[1:4]]  # not the marks, not the padding
    found = loss(bare, example, jax.random.key(3))
    np.testing.assert_allclose(found, -np.mean(said), rtol=1e-5)
    empty = example | {"length": jnp.int32(0)}
    assert loss(params, empty, jax.random.key(3)) == 0.0
    spoilt = example | {"tokens": tokens.at[5:].set(17)}
    assert loss(params, spoilt, jax.random.key(3)) == loss(
        params, example, jax.random.key(3)
    )


def test_masks_hide_what_is_asked():
    """The gradient with respect to the row of a masked word is that of the output."""
    _, task = _small(mask_rate=0.4)
    params = task.init(jax.random.key(0))
    example = {"tokens": jnp.array([1, 5, 9, 7, 11, 1]), "length": jnp.int32(6)}
    loss = jit(task.loss)
    values = {float(loss(params, example, jax.random.key(i))) for i in range(8)}
    assert len(values) > 4  # the choice is of the key
    assert max(values) < 2 * np.log(23)


def test_it_learns_a_text_and_binds():
    config, task = _small(mask_rate=0.3)
    params = task.init(jax.random.key(0))
    example = {"tokens": jnp.array([1, 5, 9, 7, 11, 1]), "length": jnp.int32(6)}

    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))

    @jit
    def train(params, key):
        def step(carry, i):
            params, state = carry
            grads = jax.grad(task.loss)(params, example, jax.random.fold_in(key, i))
            updates, state = rule.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        start = params, rule.init(params)
        return jax.lax.scan(step, start, jnp.arange(300, dtype=jnp.uint32))[0][0]

    params = train(params, jax.random.key(1))
    model = masked_lm.bind(config, params)
    hidden = example | {"tokens": example["tokens"].at[2].set(2)}
    log_probs = jit(model.log_probs)(params, hidden, jnp.array([2]))
    assert log_probs.shape == (1, 23) and int(log_probs.argmax()) == 9


def test_wrong_options_are_refused():
    config = masked_lm.config(23)
    assert bert.num_features(config, "mean") == 64
    for call, word in (
        (lambda: masked_lm.config(23, width=30), "divide"),
        (lambda: masked_lm.config(1), "vocabulary_size"),
        (lambda: masked_lm.task(config, mask_id=23), "23 words"),
        (lambda: masked_lm.task(config, mask_id=2, mask_rate=1.0), "mask_rate"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
