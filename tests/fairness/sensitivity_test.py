"""Prediction sensitivity: the full Jacobian, differences, theory, costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from trustml import task as task_lib
from trustml.fairness import counterfactual, sensitivity
from trustml.models import transformer

T, D, K, V = 5, 4, 3, 11


def tiny(pool="attend"):
    """A classifier with embed and head, float64 where that is on."""

    def init(key):
        keys = random.split(key, 4)
        shapes = ((V, D), (T * D, 6), (6, K), (T, 1))
        return [random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]

    def embed(params, example):
        return params[0][example["tokens"]]

    def head(params, embedded, example):
        there = jnp.arange(T) < example["length"]
        x = jnp.where(there[:, None], embedded, 0.0)
        if pool == "mean":
            x = jnp.broadcast_to(x.mean(axis=0, keepdims=True), (T, D))
        return jax.nn.log_softmax(jnp.tanh(x.reshape(-1) @ params[1]) @ params[2])

    return task_lib.classification(
        init, lambda p, e: head(p, embed(p, e), e), embed=embed, head=head
    )


def example(length=4):
    return {
        "tokens": jnp.array([3, 7, 1, 9, 0]),
        "length": jnp.array(length),
        "label": jnp.array(2),
    }


def setting(pool="attend"):
    task = tiny(pool)
    params = task.init(random.key(0))
    one = example()
    words = jnp.arange(T) < one["length"]
    v = random.uniform(random.key(1), (T, D))
    return task, params, one, words, v


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def jacobian(task, params, one, output="prob"):
    def f(at):
        log_probs = task.head(params, at, one)
        probs = jnp.exp(log_probs)
        if output == "margin":
            return log_probs - jnp.log1p(-probs)
        return probs if output == "prob" else log_probs

    embedded = task.embed(params, one)
    return f(embedded), jax.jacrev(f)(embedded)


@pytest.mark.parametrize("output", ["prob", "log_prob", "margin"])
@pytest.mark.parametrize("w", ["predicted", "target", "uniform", "given"])
@pytest.mark.parametrize("form", ["abs", "signed"])
def test_equal_to_the_full_jacobian(double, form, w, output):
    task, params, one, words, v = setting()
    values, j = jacobian(task, params, one, output)
    given = jnp.array([0.2, 0.0, 1.7])
    weight = {
        "predicted": jax.nn.one_hot(jnp.argmax(values), K),
        "target": jax.nn.one_hot(2, K),
        "uniform": jnp.full(K, 1 / 3),
        "given": given,
    }[w]
    size = jnp.abs(j) if form == "abs" else j
    v_used = jnp.where(words[:, None], v, 0.0)
    parts = jnp.einsum("k,ktd,td->t", weight, size, v_used)
    measure = sensitivity.prediction_sensitivity(
        task, form=form, w=w, output=output, chunk=2
    )
    extra = {"weights": given} if w == "given" else {}
    found = jax.jit(lambda v: measure(params, one, v, words, **extra))(v)
    np.testing.assert_allclose(found.value, parts.sum(), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(found.tokens, parts, rtol=1e-8, atol=1e-14)
    if form == "abs":
        there = jnp.broadcast_to(words[:, None], v.shape).astype(v.dtype)
        whole = jnp.einsum("k,ktd,td->", weight, size, there)
        np.testing.assert_allclose(found.share, parts.sum() / whole, rtol=1e-10)


def test_equal_to_central_differences(double):
    task, params, one, words, v = setting()
    embedded = task.embed(params, one)
    measure = sensitivity.prediction_sensitivity(task, w="target")
    total, h = 0.0, 1e-6
    for t in range(T):
        for d in range(D):
            step = jnp.zeros((T, D)).at[t, d].set(h)
            up, down = (
                jnp.exp(task.head(params, embedded + s * step, one))[2] for s in (1, -1)
            )
            total += abs(float(up - down)) / (2 * h) * float(v[t, d]) * bool(words[t])
    found = measure(params, one, v, words)
    np.testing.assert_allclose(found.value, total, rtol=1e-5)


def test_completeness_of_the_path_integral(double):
    task, params, one, words, _ = setting()
    b = jnp.zeros((T, D))
    measure = sensitivity.prediction_sensitivity(
        task, form="integrated", w="target", points=400
    )
    # One word at a time, so that |A_t| keeps its sum with signs: here by hand.
    embedded = task.embed(params, one)

    def f(at):
        return jnp.exp(task.head(params, at, one))[2]

    s = (jnp.arange(400, dtype=float) + 0.5) / 400
    grads = jax.vmap(lambda s: jax.grad(f)(b + s * (embedded - b)))(s).mean(0)
    attribution = jnp.where(words, jnp.sum(grads * (embedded - b), axis=1), 0.0)
    whole = f(embedded) - f(jnp.zeros((T, D)))
    np.testing.assert_allclose(attribution.sum(), whole, rtol=1e-5)
    v = jnp.array([0.1, 0.2, 0.3, 0.4, 5.0])
    found = measure(params, one, v, words, b)
    wanted = jnp.abs(attribution) * jnp.where(words, v, 0.0)
    np.testing.assert_allclose(found.tokens, wanted, rtol=1e-5, atol=1e-12)
    share = wanted.sum() / jnp.abs(attribution).sum()
    np.testing.assert_allclose(found.share, share, rtol=1e-5)


def test_completeness_where_the_model_reads_what_is_no_word(double):
    # Every token moves the prediction, first and last are marks such as [CLS]: the
    # words go to the baseline, the marks stay, and the parts add up to the difference.
    task, params, one, _, _ = setting()
    one |= {"length": jnp.array(T)}
    words = jnp.array([False, True, True, True, False])
    b = random.normal(random.key(3), (D,))
    embedded = task.embed(params, one)

    def f(at):
        return jnp.exp(task.head(params, at, one))[2]

    start = jnp.where(words[:, None], b[None], embedded)
    s = (jnp.arange(400, dtype=float) + 0.5) / 400
    grads = jax.vmap(lambda s: jax.grad(f)(start + s * (embedded - start)))(s).mean(0)
    parts = jnp.sum(grads * (embedded - start), axis=1)
    # The midpoint rule errs by 1 / (24 * 400^2) of a second difference.
    np.testing.assert_allclose(parts.sum(), f(embedded) - f(start), atol=1e-5)
    assert abs(parts.sum()) > 1e-2
    measure = sensitivity.prediction_sensitivity(
        task, form="integrated", w="target", points=400
    )
    found = measure(params, one, jnp.ones(T), words, b)
    np.testing.assert_allclose(found.tokens, jnp.abs(parts), rtol=1e-5, atol=1e-12)
    # Of one word alone the part has no sign to lose.
    alone = jnp.arange(T) == 2
    found = measure(params, one, jnp.ones(T), alone, b)
    moved = embedded.at[2].set(b)
    np.testing.assert_allclose(found.value, jnp.abs(f(embedded) - f(moved)), atol=1e-5)

    def margin(at):
        log_probs = task.head(params, at, one)
        k = jnp.argmax(task.head(params, embedded, one))
        return log_probs[k] - jnp.log1p(-jnp.exp(log_probs[k]))

    v = sensitivity.directions(
        task, attribution="integrated", normalise="none", points=400
    )(params, one, alone, b)
    wanted = jnp.abs(margin(embedded) - margin(moved))
    np.testing.assert_allclose(v, jnp.where(alone, wanted, 0.0), atol=1e-4)


def test_displacement_moves_what_reveals_to_the_baseline(double):
    task, params, one, words, _ = setting()
    b = random.normal(random.key(3), (T, D))
    measure = sensitivity.prediction_sensitivity(task, form="displacement")
    v = jnp.array([0.0, 2.0, 1.0, 0.0, 9.0])
    found = measure(params, one, v, words, b)
    embedded = task.embed(params, one)
    m = jnp.array([0.0, 1.0, 0.5, 0.0, 0.0])
    moved = embedded + m[:, None] * (b - embedded)
    probs = [jnp.exp(task.head(params, at, one)) for at in (embedded, moved)]
    wanted = jnp.abs(probs[0] - probs[1]).sum() / 2
    np.testing.assert_allclose(found.value, wanted, rtol=1e-10)
    none = measure(params, one, jnp.zeros(T), words, b)
    assert none.value == 0 and np.isnan(none.share)


def test_padding_counts_for_nothing_whatever_it_holds():
    task, params, one, words, v = setting()
    wild = v.at[4].set(jnp.nan)
    for form in sensitivity.FORMS:
        measure = sensitivity.prediction_sensitivity(task, form=form)
        found = [measure(params, one, x, words, jnp.zeros(D)) for x in (v, wild)]
        for a, b in zip(*found, strict=True):
            np.testing.assert_array_equal(a, b)
        assert found[0].tokens[4] == 0
    of_status = sensitivity.directions(task)
    assert of_status(params, one, words)[4] == 0


def test_special_tokens_are_in_no_share(double):
    # The first token moves the prediction, but is no word.
    task, params, one, words, v = setting()
    words = words.at[0].set(False)
    _, j = jacobian(task, params, one)
    size = jnp.abs(j[2]) * words[:, None].astype(v.dtype)
    found = sensitivity.prediction_sensitivity(task, w="target")(params, one, v, words)
    np.testing.assert_allclose(found.share, (size * v).sum() / size.sum(), rtol=1e-10)
    assert found.tokens[0] == 0


@pytest.mark.parametrize("how", ["l1", "l2", "none"])
def test_directions_are_the_normalised_gradient_of_the_margin(double, how):
    task, params, one, words, _ = setting()
    values, j = jacobian(task, params, one, "margin")
    size = jnp.where(words[:, None], jnp.abs(j[jnp.argmax(values)]), 0.0)
    norm = {"l1": lambda x: x.sum(), "l2": lambda x: (x**2).sum() ** 0.5}.get(
        how, lambda _: 1.0
    )
    for per_coordinate, wanted in ((True, size), (False, size.sum(1))):
        of_one = sensitivity.directions(
            task, normalise=how, per_coordinate=per_coordinate
        )
        found = of_one(params, one, words)
        np.testing.assert_allclose(found, wanted / norm(wanted), rtol=1e-10)
    path = sensitivity.directions(task, attribution="integrated", normalise=how)
    assert path(params, one, words, jnp.zeros(D)).shape == (T,)


def test_averaged_embeddings_cancel_v():
    task, params, one, words, _ = setting("mean")
    measure = sensitivity.prediction_sensitivity(task)
    for v in ([1.0, 0, 0, 0, 0], [0, 0, 0.5, 0.5, 0]):
        found = measure(params, one, jnp.array(v), words)
        np.testing.assert_allclose(found.share, 1 / 4, rtol=1e-5)


def test_the_norm_of_the_jacobian_by_signs(double):
    task, params, one, words, _ = setting()
    _, j = jacobian(task, params, one)
    wanted = float(jnp.sum(jnp.where(words[None, :, None], j, 0.0) ** 2))
    estimate = sensitivity.frobenius(task, probes=2000)
    found, se = estimate(random.key(5), params, one, words)
    assert abs(found - wanted) < 4 * se < 0.3 * wanted


def test_sub_words_add_up_to_words():
    parts = jnp.array([1.0, 2.0, 4.0, 8.0])
    found = sensitivity.by_word(parts, jnp.array([0, 0, 1, -1]), 3)
    np.testing.assert_array_equal(found, [3.0, 4.0, 0.0])
    on = sensitivity.lexicon(
        jnp.array([5, 6, 7, 5]), jnp.array([5, 9]), jnp.array([True, True, True, False])
    )
    np.testing.assert_array_equal(on, [1.0, 0, 0, 0])


def test_no_individual_moves_more_than_the_bound(double):
    # |w (f(x) - f(x + t v))| <= |t| sup w^T |J| v over the segment, w >= 0, v >= 0.
    rng = np.random.default_rng(0)
    cases = 10_000
    a = jnp.asarray(rng.normal(size=(cases, 6, 3)))
    c = jnp.asarray(rng.normal(size=(cases, K, 6)))
    x, v = (jnp.asarray(rng.normal(size=(cases, 3))) for _ in range(2))
    v, t = jnp.abs(v), jnp.asarray(rng.normal(size=cases))
    w = jnp.asarray(rng.random((cases, K)))

    @jax.jit
    @jax.vmap
    def holds(a, c, x, v, w, t):
        def f(x):
            return c @ jnp.tanh(a @ x)

        moved = jnp.abs(w @ (f(x) - f(x + t * v)))
        # tanh' <= 1, so |J| <= |c| |a| everywhere.
        return moved <= jnp.abs(t) * (w @ (jnp.abs(c) @ jnp.abs(a)) @ v) * (1 + 1e-12)

    assert int(jnp.sum(~holds(a, c, x, v, w, t))) == 0


def test_no_group_differs_by_more_than_the_bound(double):
    # x = (x_p, x_q), x_q independent of x_p: the same x_q on both sides.
    rng = np.random.default_rng(1)
    cases, n = 10_000, 16
    a = jnp.asarray(rng.normal(size=(cases, 5, 3)))
    c = jnp.asarray(rng.normal(size=(cases, 5)))
    x_q = jnp.asarray(rng.normal(size=(cases, n, 2)))
    ends = jnp.asarray(rng.normal(size=(cases, 2)))

    @jax.jit
    @jax.vmap
    def holds(a, c, x_q, ends):
        def mean(p):
            rows = jnp.concatenate([jnp.full((n, 1), p), x_q], axis=1)
            return jnp.mean(jax.nn.sigmoid(jnp.tanh(rows @ a.T) @ c))

        apart = jnp.abs(mean(ends[0]) - mean(ends[1]))
        steepest = 0.25 * jnp.abs(c) @ jnp.abs(a[:, 0])
        return apart <= steepest * jnp.abs(ends[0] - ends[1]) * (1 + 1e-12)

    assert int(jnp.sum(~holds(a, c, x_q, ends))) == 0


def test_costs_of_one_backward_pass():
    length, width, classes, batch = 32, 64, 28, 8
    task = transformer.classifier(
        200, classes, max_length=length, width=width, depth=2, heads=4, dropout=0.0
    )
    params = task.init(random.key(0))
    examples = {
        "tokens": jnp.ones((batch, length), jnp.int32),
        "length": jnp.full(batch, length),
        "label": jnp.zeros(batch, jnp.int32),
    }
    words = jnp.ones((batch, length), bool)
    v = jnp.ones((batch, length)) / length

    def compiled(one):
        run = jax.jit(jax.vmap(one))
        return run.lower(examples, v, words).compile()

    def cost(made):
        return made.cost_analysis()["flops"]

    forward = compiled(lambda e, v, w: task.predict(params, e))
    backward = compiled(
        lambda e, v, w: jax.grad(lambda at: jnp.exp(task.head(params, at, e))[0])(
            task.embed(params, e)
        )
    )
    for form in ("abs", "signed"):
        measure = sensitivity.prediction_sensitivity(task, form=form, w="target")
        made = compiled(lambda e, v, w: measure(params, e, v, w).value)  # noqa: B023
        assert cost(made) <= 2.2 * cost(forward)
        peak = made.memory_analysis().temp_size_in_bytes
        assert peak <= 2 * backward.memory_analysis().temp_size_in_bytes

    def naive(e, v, w):
        j = jax.jacrev(lambda at: jnp.exp(task.head(params, at, e)))
        return jnp.sum(jnp.abs(j(task.embed(params, e))[0]) * v[:, None])

    assert cost(compiled(naive)) > 5 * cost(made)


def test_wrong_calls_are_refused():
    task, params, one, words, v = setting()
    with pytest.raises(ValueError, match="form='jacobian'"):
        sensitivity.prediction_sensitivity(task, form="jacobian")
    with pytest.raises(ValueError, match="has no embed and head"):
        sensitivity.directions(task._replace(embed=None))
    with pytest.raises(ValueError, match="baseline=None is needed by form="):
        sensitivity.prediction_sensitivity(task, form="integrated")(
            params, one, v, words
        )
    with pytest.raises(ValueError, match="does not go with w='predicted'"):
        sensitivity.prediction_sensitivity(task)(
            params, one, v, words, weights=jnp.ones(K)
        )
    with pytest.raises(ValueError, match=r"v=.*neither \[T\] nor \[T, D\]"):
        sensitivity.prediction_sensitivity(task)(
            params, one, jnp.ones((T, D + 1)), words
        )


def test_counterfactual_gaps_by_hand():
    pairs = jnp.array([[1, 2], [5, 4]])
    tokens = jnp.array([[1, 3, 5], [3, 3, 3], [2, 0, 0]])
    swapped, changed = counterfactual.swap(tokens, pairs)
    np.testing.assert_array_equal(swapped, [[2, 3, 4], [3, 3, 3], [1, 0, 0]])
    np.testing.assert_array_equal(changed, [True, False, True])
    again, _ = counterfactual.swap(swapped, pairs)
    np.testing.assert_array_equal(again, tokens)
    first = jnp.log(jnp.array([[0.6, 0.4], [0.5, 0.5], [0.9, 0.1]]))
    second = jnp.log(jnp.array([[0.3, 0.7], [0.1, 0.9], [0.8, 0.2]]))
    found = counterfactual.gap(first, second, changed)
    np.testing.assert_allclose(found.per_example, [0.3, 0.0, 0.1], atol=1e-6)
    np.testing.assert_allclose(found.mean, 0.2, rtol=1e-5)
    np.testing.assert_allclose(found.signed, [0.2, -0.2], rtol=1e-5)
    np.testing.assert_allclose([found.flips, found.coverage], [0.5, 2 / 3], rtol=1e-6)
    nobody = counterfactual.gap(first, second, jnp.zeros(3, bool))
    assert np.isnan(nobody.mean) and nobody.coverage == 0
    same, none = counterfactual.swap(tokens, jnp.zeros((0, 2), int))
    np.testing.assert_array_equal(same, tokens)
    assert not none.any() and none.shape == (3,)
    with pytest.raises(ValueError, match="pairs=1 has two partners"):
        counterfactual.swap(tokens, jnp.array([[1, 2], [1, 3]]))
