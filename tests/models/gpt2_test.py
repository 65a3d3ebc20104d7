"""GPT-2 against the outputs of PyTorch (made by `golden/make.py`)."""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from trustml.models import gpt2, language_model

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden" / "gpt2"
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "golden.npz"))


@pytest.fixture(scope="module")
def model():
    return gpt2.pretrained(GOLDEN)


def _batch(golden):
    return {
        "tokens": jnp.asarray(golden["tokens"]),
        "length": jnp.asarray(golden["lengths"]),
    }


def _real(golden):
    places = np.arange(golden["tokens"].shape[1])[None, :]
    return places < golden["lengths"][:, None]


def test_log_probs_equal_pytorch(model, golden):
    logits = jit(jax.vmap(model.logits, (None, 0)))(model.params, _batch(golden))
    found, real = np.asarray(jax.nn.log_softmax(logits)), _real(golden)
    np.testing.assert_allclose(found[real], golden["log_probs"][real], atol=1e-4)


def test_padding_and_what_follows_do_not_matter(model, golden):
    batch = _batch(golden)
    logits = jit(jax.vmap(model.logits, (None, 0)))
    plain = np.asarray(logits(model.params, batch))
    spoilt = jnp.where(jnp.asarray(_real(golden)), batch["tokens"], 10**6)
    other = np.asarray(logits(model.params, batch | {"tokens": spoilt}))
    np.testing.assert_array_equal(other, plain)
    later = batch["tokens"].at[:, 6:].set(7)
    changed = np.asarray(logits(model.params, batch | {"tokens": later}))
    np.testing.assert_allclose(changed[:, :6], plain[:, :6], atol=1e-5)
    assert np.abs(changed[-1, 6:] - plain[-1, 6:]).max() > 0.1


def test_the_task_says_what_each_token_cost(model, golden):
    """`predict` is the network on the text behind the token that begins it."""
    task = gpt2.task(directory=GOLDEN)
    params = task.init(jax.random.key(0))
    row = {"tokens": golden["tokens"][-1], "length": golden["lengths"][-1]}
    row = jax.tree.map(jnp.asarray, row)
    begin = jnp.array([model.config.begin_id], jnp.int32)
    longer = {
        "tokens": jnp.concatenate([begin, row["tokens"]])[:-1],
        "length": row["length"],
    }
    expected = jax.nn.log_softmax(jit(model.logits)(model.params, longer))
    np.testing.assert_allclose(jit(task.predict)(params, row), expected, atol=1e-5)
    said = language_model.token_log_probs(expected, row["tokens"])
    loss = jit(task.loss)(params, row, jax.random.key(0))
    np.testing.assert_allclose(loss, -np.mean(said), rtol=1e-5)
    by_parts = jit(lambda p, e: task.head(p, task.embed(p, e), e))(params, row)
    np.testing.assert_array_equal(by_parts, jit(task.predict)(params, row))


def test_bfloat16_is_close(model, golden):
    half = gpt2.pretrained(GOLDEN, compute_dtype="bfloat16")
    logits = jit(jax.vmap(half.logits, (None, 0)))(half.params, _batch(golden))
    assert logits.dtype == jnp.float32
    real = _real(golden)
    found = np.asarray(jax.nn.log_softmax(logits))[real]
    error = np.abs(found - golden["log_probs"][real]).mean()
    assert 1e-4 < error < 0.1


def test_from_scratch_it_learns_and_remat_changes_nothing():
    config = gpt2.Gpt2Config(vocab_size=13, width=16, depth=2, heads=2, max_length=8)
    task = gpt2.task(config)
    params = task.init(jax.random.key(0))
    example = {"tokens": jnp.array([3, 5, 7, 9, 11, 0]), "length": jnp.int32(5)}
    key = jax.random.key(1)
    value, grads = jit(jax.value_and_grad(task.loss))(params, example, key)
    assert abs(float(value) - np.log(13)) < 0.1  # small weights: all words alike
    again = gpt2.task(config, remat=True)
    other = jit(jax.grad(again.loss))(params, example, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, other)
    stepped = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    assert jit(task.loss)(stepped, example, key) < value - 0.3
    dropped = gpt2.task(config, dropout=0.5)
    losses = [jit(dropped.loss)(params, example, jax.random.key(i)) for i in range(2)]
    assert losses[0] != losses[1]


def _edited(tmp_path, config=None, tensors=None):
    """A copy of the checkpoint, its config and tensors passed through functions."""
    directory = tmp_path / "copy"
    shutil.copytree(GOLDEN, directory)
    if config:
        raw = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(raw | config))
    if tensors:
        path = directory / "model.safetensors"
        old = safetensors_numpy.load_file(path)
        safetensors_numpy.save_file(tensors(old), path)
    return directory


def test_older_files_are_understood(tmp_path, model):
    """No prefix, buffers of the attention, a copy of the table as output."""

    def older(tensors):
        new = {k.removeprefix("transformer."): v for k, v in tensors.items()}
        for i in range(2):
            new[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 32, 32), np.uint8))
            new[f"h.{i}.attn.masked_bias"] = np.float32([-1e4])
        return new | {"lm_head.weight": new["wte.weight"].copy()}

    directory = _edited(tmp_path, tensors=older)
    raw = json.loads((directory / "config.json").read_text())
    raw["n_ctx"] = raw.pop("n_positions")
    (directory / "config.json").write_text(json.dumps(raw))
    config, params = gpt2.load(directory)
    assert config == model.config
    jax.tree.map(np.testing.assert_array_equal, params, model.params)


def _without(*names):
    return lambda old: {k: v for k, v in old.items() if not k.endswith(names)}


def _renamed(old):
    return {k.replace("h.1.mlp.c_fc.bias", "h.1.mlp.gate"): v for k, v in old.items()}


def _untied(old):
    return old | {"lm_head.weight": old["transformer.wte.weight"] + np.float16(1)}


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({"model_type": "bert"}, None, ["model_type", "'bert'", "gpt2"]),
        ({"n_embd": None}, None, ["n_embd", "missing"]),
        ({"n_head": None}, None, ["n_head", "missing"]),
        ({"activation_function": "gelo"}, None, ["activation_function", "gelu"]),
        ({"scale_attn_weights": False}, None, ["scale_attn_weights", "False"]),
        ({"tie_word_embeddings": False}, None, ["tie_word_embeddings"]),
        ({"n_layer": 1}, None, ["missing none", "unexpected 12", "h.1.attn.c_attn"]),
        ({"n_layer": 3}, None, ["missing 12", "h.2.ln_1.bias", "unexpected none"]),
        ({"n_positions": 33}, None, ["wpe.weight", "(32, 32)", "config.json"]),
        (None, _renamed, ["missing 1 (h.1.mlp.c_fc.bias)", "unexpected 1 (h.1.mlp.ga"]),
        (None, _untied, ["lm_head.weight", "wte.weight", "tie_word_embeddings"]),
    ],
)
def test_wrong_checkpoints_are_refused(tmp_path, config, tensors, words):
    directory = _edited(tmp_path, config=config, tensors=tensors)
    with pytest.raises(ValueError) as error:
        gpt2.load(directory)
    for word in words:
        assert word in str(error.value), error.value


def test_wrong_sizes_are_refused(model):
    for change, word in (
        ({"heads": 3}, "divide"),
        ({"begin_id": 61}, "61 words"),
        ({"depth": 0}, "model.depth"),
        ({"norm_epsilon": 0.0}, "norm_epsilon"),
    ):
        with pytest.raises(ValueError, match=word):
            gpt2.task(model.config._replace(**change))
    with pytest.raises(ValueError, match="not both"):
        gpt2.task()
    example = {"tokens": jnp.zeros(33, jnp.int32), "length": jnp.int32(33)}
    with pytest.raises(ValueError, match="exceeds the 32 positions"):
        model.logits(model.params, example)
