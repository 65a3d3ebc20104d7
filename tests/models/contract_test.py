"""One contract for all models: one table, the same checks for every row."""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.models import bag, bert, bilstm, cnn, gru, mlp, tagging, transformer

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
VOCAB, CLASSES, SLOTS, T = 40, 3, 5, 6
SMALL = {"max_length": 9, "width": 12, "depth": 2, "heads": 3}


TASKS = {
    "mlp": lambda dropout=0.0: mlp.task(4, CLASSES, hidden=(16,), dropout=dropout),
    "cnn": lambda dropout=0.0: cnn.task(
        (6, 5, 1), CLASSES, channels=(4, 6), hidden=(8,), dropout=dropout
    ),
    "bag": lambda dropout=0.0: bag.task(
        VOCAB, CLASSES, width=8, hidden=(8,), bigrams=16, dropout=dropout
    ),
    "bilstm": lambda dropout=0.0: bilstm.task(
        VOCAB, CLASSES, SLOTS, width=8, hidden=6, dropout=dropout
    ),
    "gru": lambda dropout=0.0: gru.task(
        VOCAB, CLASSES, SLOTS, width=8, hidden=6, dropout=dropout
    ),
    "classifier": lambda dropout=0.0: transformer.classifier(
        VOCAB, CLASSES, dropout=dropout, **SMALL
    ),
    "classifier_bf16": lambda dropout=0.0: transformer.classifier(
        VOCAB,
        CLASSES,
        pooling="cls",
        scan_layers=True,
        remat=True,
        compute_dtype="bfloat16",
        dropout=dropout,
        **SMALL,
    ),
    "tagger": lambda dropout=0.0: transformer.tagger(
        VOCAB, SLOTS, num_intents=CLASSES, dropout=dropout, **{**SMALL, "depth": 1}
    ),
    "bert": lambda dropout=0.0: bert.classifier(
        GOLDEN / "bert", CLASSES, remat=True, dropout=dropout
    ),
    "bert_wide": lambda dropout=0.0: bert.classifier(
        GOLDEN / "bert", CLASSES, pooling="all_layers", wide=True, dropout=dropout
    ),
}
LENGTHS = np.array([0, 1, 3, T, T], np.int32)  # row 0 is the all-zeros dummy
# Programs here are large and run once: compiling them well costs more than it gives.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)


def _batch(slots, garbage=0):
    """Five examples in `slots` token slots, `garbage` in those that are padding."""
    rng = np.random.default_rng(0)
    real = np.arange(slots)[None, :] < LENGTHS[:, None]
    tokens = np.full((5, slots), garbage, np.int32)
    tokens[:, :T] = rng.integers(2, VOCAB, (5, T))
    features = rng.normal(size=(5, 4)).astype(np.float32)
    images = rng.normal(size=(5, 6, 5, 1)).astype(np.float32)
    features[0], images[0] = 0.0, 0.0
    batch = {
        "tokens": np.where(real, tokens, garbage),
        "length": LENGTHS,
        "label": np.array([0, 0, 1, 2, 1], np.int32),
        "slots": np.where(real, tokens % SLOTS, garbage % SLOTS),
        "features": features,
        "image": images,
    }
    return jax.tree.map(jnp.asarray, batch)


class Case(NamedTuple):
    """One row of the table, with everything it says about ten examples."""

    name: str
    task: Any
    params: Any
    gradients: Any  # (params, batch of ten) -> (losses, per-example gradients)
    batch: Any  # clean examples in rows 0 to 4, the same with garbage in rows 5 to 9
    out: Any


@pytest.fixture(scope="module", params=list(TASKS))
def case(request):
    task = TASKS[request.param]()
    params = jit(task.init)(jax.random.key(0))

    def one(params, example, key):
        loss, grads = jax.value_and_grad(task.loss)(params, example, key)
        prediction = task.predict(params, example)
        metrics = {k: fn(prediction, example) for k, fn in task.metrics.items()}
        again = embeddings = None
        if task.embed is not None:
            embeddings = task.embed(params, example)
            again = task.head(params, embeddings, example)
        return {
            "loss": loss,
            "grads": grads,
            "prediction": prediction,
            "metrics": metrics,
            "again": again,
            "embeddings": embeddings,
        }

    program = jit(jax.vmap(one, (None, 0, None)))
    batch = jax.tree.map(
        lambda *x: jnp.concatenate(x), _batch(T + 2), _batch(T + 2, garbage=10_000)
    )
    out = program(params, batch, jax.random.key(1))
    return Case(request.param, task, params, program, batch, out)


def test_parameters_and_outputs_are_float32(case):
    for leaf in jax.tree.leaves((case.params, case.out)):
        assert leaf.dtype == jnp.float32


def test_everything_is_finite_also_on_the_dummy(case):
    for path, leaf in jax.tree.leaves_with_path(case.out):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)


def test_every_parameter_is_trained(case):
    for path, leaf in jax.tree.leaves_with_path(case.out["grads"]):
        assert np.abs(leaf[1:5]).max() > 0, jax.tree_util.keystr(path)


def test_predictions_are_log_probabilities(case):
    for leaf in jax.tree.leaves(case.out["prediction"]):
        np.testing.assert_allclose(np.exp(leaf).sum(-1), 1.0, rtol=1e-5)


def test_loss_is_the_negative_log_probability_of_the_truth(case):
    if case.name == "bilstm":
        pytest.skip("its loss is of the chain; see bilstm_test")
    prediction = case.out["prediction"]
    label = np.asarray(getattr(prediction, "label", prediction))
    expected = -label[np.arange(10), case.batch["label"]]
    if case.name in ("gru", "tagger"):
        for i, length in enumerate(case.batch["length"]):
            tags = np.asarray(case.batch["slots"])[i, :length]
            picked = np.asarray(prediction.slots)[i, np.arange(length), tags]
            expected[i] -= picked.mean() if length else 0.0
    np.testing.assert_allclose(case.out["loss"], expected, rtol=1e-5, atol=1e-6)


def test_metrics_are_scalars_between_bounds(case):
    for name, values in case.out["metrics"].items():
        assert values.shape == (10,)
        assert (np.asarray(values) >= 0).all()
        if name.endswith("accuracy"):
            assert (np.asarray(values) <= 1).all()


def test_predict_is_head_of_embed(case):
    assert (case.task.embed is None) == (case.name in ("mlp", "cnn"))
    if case.task.embed is None:
        return
    for a, b in zip(
        jax.tree.leaves(case.out["prediction"]),
        jax.tree.leaves(case.out["again"]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert case.out["embeddings"].ndim == 3
    assert case.out["embeddings"].shape[1] == T + 2


def test_what_stands_in_padding_does_not_matter(case):
    """Ids outside the vocabulary in padding change neither outputs nor gradients."""
    for path, leaf in jax.tree.leaves_with_path(case.out):
        np.testing.assert_array_equal(
            leaf[:5], leaf[5:], err_msg=jax.tree_util.keystr(path)
        )


def test_the_amount_of_padding_does_not_matter(case):
    predict = jit(jax.vmap(case.task.predict, (None, 0)))
    tight = jax.tree.leaves(predict(case.params, _batch(T)))
    wide = jax.tree.leaves(case.out["prediction"])
    tolerance = {"atol": 0.02} if case.name == "classifier_bf16" else {"atol": 3e-6}
    for a, b in zip(tight, wide, strict=True):
        np.testing.assert_allclose(a, b[:5, :T] if a.ndim == 3 else b[:5], **tolerance)


def test_toy_problem_is_learned(case):
    """Adam on the real examples: the loss falls to a fifth within 60 steps."""
    params = jax.tree.map(np.asarray, case.params)  # NumPy: nothing more to compile
    first = second = jax.tree.map(np.zeros_like, params)
    losses = []
    for step in range(1, 61):
        out = case.gradients(params, case.batch, jax.random.key(1))
        losses.append(float(np.mean(out["loss"][1:5])))
        grads = jax.tree.map(lambda g: np.asarray(g)[1:5].mean(axis=0), out["grads"])
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, second, grads)
        scale = 0.02 * np.sqrt(1 - 0.99**step) / (1 - 0.9**step)
        params = jax.tree.map(
            lambda p, m, v, s=scale: p - np.float32(s) * m / (np.sqrt(v) + 1e-8),
            params,
            first,
            second,
        )
    assert losses[-1] < 0.2 * losses[0], losses[::10]


@pytest.mark.parametrize("name", list(TASKS))
def test_dropout_acts_in_training_only(name):
    example = jax.tree.map(lambda x: x[3], _batch(T))

    def draws(dropout, training):
        task = TASKS[name](dropout=dropout)
        params = jax.eval_shape(task.init, jax.random.key(0))
        if training:
            program = jax.make_jaxpr(task.loss)(params, example, jax.random.key(0))
        else:
            program = jax.make_jaxpr(task.predict)(params, example)
        return str(program).count("random_bits")

    assert draws(0.5, training=True) > 0
    assert draws(0.5, training=False) == 0
    assert draws(0.0, training=True) == 0


def test_dropout_follows_its_key():
    task = TASKS["bag"](dropout=0.5)
    params = jit(task.init)(jax.random.key(0))
    example = jax.tree.map(lambda x: x[3], _batch(T))
    losses = jit(
        jax.vmap(lambda seed: task.loss(params, example, jax.random.key(seed)))
    )(jnp.array([1, 1, 2, 3]))
    assert losses[0] == losses[1]
    assert len({float(x) for x in losses}) == 3


def test_joint_models_predict_both_parts(case):
    joint = isinstance(case.out["prediction"], tagging.Joint)
    assert joint == (case.name in ("bilstm", "gru", "tagger"))
    if joint:
        assert case.out["prediction"].label.shape == (10, CLASSES)
        assert case.out["prediction"].slots.shape == (10, T + 2, SLOTS)


def test_a_tagger_without_intents():
    task = transformer.tagger(VOCAB, SLOTS, **SMALL)
    params = jax.eval_shape(task.init, jax.random.key(0))
    example = jax.tree.map(lambda x: x[3], _batch(T))
    assert jax.eval_shape(task.predict, params, example).shape == (T, SLOTS)
    loss = jax.eval_shape(task.loss, params, example, jax.random.key(0))
    assert loss.shape == ()
    assert set(task.metrics) == {"slot_accuracy", "slot_loss"}


def _expect(build, *words):
    with pytest.raises(ValueError) as error:
        build()
    for word in words:
        assert word in str(error.value), error.value


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: mlp.task(0, 2), ["model.num_features=0"]),
        (lambda: mlp.task(4, 1), ["model.num_classes=1"]),
        (lambda: mlp.task(4, 2, hidden=(8, 0)), ["model.hidden[1]=0"]),
        (lambda: mlp.task(4, 2, dropout=1.0), ["model.dropout=1.0"]),
        (lambda: mlp.task(4, 2, activation="rleu"), ["'rleu'", "relu"]),
        (lambda: cnn.task((8, 8), 2), ["model.image_shape", "three"]),
        (lambda: cnn.task((8, 8, 1), 2, channels=()), ["model.channels"]),
        (lambda: bag.task(0, 2), ["model.vocabulary_size=0"]),
        (lambda: bag.task(9, 2, bigrams=-1), ["model.bigrams=-1"]),
        (lambda: bilstm.task(9, 2, 1), ["model.num_slots=1"]),
        (lambda: bilstm.task(9, 2, 3, slot_weight=-1.0), ["model.slot_weight=-1.0"]),
        (
            lambda: transformer.classifier(9, 2, max_length=4, width=10, heads=4),
            ["model.heads=4", "divide", "try 2"],
        ),
        (
            lambda: transformer.classifier(9, 2, max_length=4, compute_dtype="bf16"),
            ["model.compute_dtype='bf16'", "bfloat16"],
        ),
        (
            lambda: transformer.classifier(9, 2, max_length=4, pooling="max"),
            ["model.pooling='max'"],
        ),
        (lambda: transformer.tagger(9, 0, max_length=4), ["model.num_slots=0"]),
        (
            lambda: bert.classifier(GOLDEN / "roberta", 2, max_length=23),
            ["data.max_length=23", "22"],
        ),
        (lambda: bert.classifier(GOLDEN / "bert", 1), ["model.num_classes=1"]),
    ],
)
def test_wrong_options_end_at_once(build, words):
    _expect(build, *words)


def test_text_longer_than_the_positions_is_refused():
    task = TASKS["classifier"]()
    example = {"tokens": jnp.zeros(10, jnp.int32), "length": jnp.int32(10)}
    params = jax.eval_shape(task.init, jax.random.key(0))
    _expect(lambda: jax.eval_shape(task.predict, params, example), "max_length", "10")
    example = {"tokens": jnp.zeros(25, jnp.int32), "length": jnp.int32(10)}
    task = TASKS["bert"]()
    params = jax.eval_shape(task.init, jax.random.key(0))
    _expect(lambda: jax.eval_shape(task.predict, params, example), "max_length", "24")
