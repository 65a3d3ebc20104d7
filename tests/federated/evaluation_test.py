"""Values of clients against a loop; summaries on hand-made values; personal models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.federated import worlds
from trustml.federated import evaluation
from trustml.federated.algorithms import personal

METRICS = {
    "accuracy": lambda logits, row: (jnp.argmax(logits) == row["y"]).astype("float32"),
    "loss": lambda logits, row: -jax.nn.log_softmax(logits)[row["y"]],
}


def predict(params, row):
    return jnp.tanh(row["x"] @ params["body"]) @ params["head"] + params["bias"]


def by_hand(params, rows):
    logits = np.tanh(rows["x"] @ np.asarray(params["body"])) @ np.asarray(
        params["head"]
    )
    logits = logits + np.asarray(params["bias"])
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    picked = log_probs[np.arange(len(logits)), rows["y"]]
    return {
        "accuracy": np.mean(logits.argmax(1) == rows["y"]),
        "loss": -picked.mean(),
    }


def evaluated(world, own=None, memory=(), params=None, **options):
    evaluate = evaluation.make(
        predict,
        METRICS,
        jit=jax.jit,
        own=own,
        lanes=2,
        batch_size=4,
        devices=jax.devices()[:1],
        **options,
    )
    data = jax.device_put(world.data, jax.devices()[0])  # bound, as a feed has it
    place = lambda rows: (data, rows)  # noqa: E731
    return evaluate(params or world.params, place, world.sizes, memory=memory)


def check(world, found, models):
    busy = world.sizes > 0
    for name in METRICS:
        wanted = [by_hand(models[k], world.rows(k))[name] for k in np.flatnonzero(busy)]
        np.testing.assert_allclose(found.values[name][busy], wanted, atol=1e-5)
        assert np.isnan(found.values[name][~busy]).all()
    np.testing.assert_array_equal(found.examples, world.sizes)


def test_values_are_those_of_a_loop_over_clients():
    world = worlds.make()
    # In sweeps of 3 clients, the last one not full.
    found = evaluated(world, capacity=3)
    check(world, found, [world.params] * len(world.sizes))


PERSONAL = {
    "ditto": lambda: personal.ditto(worlds.loss, SGD, SGD, pull=0.1),
    "pfedme": lambda: personal.pfedme(
        worlds.loss, SGD, learning_rate=0.1, inner_learning_rate=0.1, pull=1.0
    ),
    "apfl": lambda: personal.apfl(worlds.loss, SGD, learning_rate=0.1, share=0.25),
    "fedrep": lambda: personal.fedrep(
        worlds.loss, SGD, SGD, is_head=lambda path: "head" in path or "bias" in path
    ),
}
SGD = optax.sgd(0.1)


@pytest.mark.parametrize("name", PERSONAL)
def test_personal_models_are_those_that_clients_keep(name):
    world = worlds.make(np.array([5, 0, 9, 2]))
    algorithm = PERSONAL[name]()
    gen = np.random.default_rng(0)
    memory = jax.tree.map(
        lambda x: (
            gen.normal(size=(4, *x.shape)).astype(np.float32)
            if x.ndim
            else np.full(4, x, np.float32)
        ),
        algorithm.memory(world.params),
    )
    models = []
    for k in range(4):
        kept = jax.tree.map(lambda x, k=k: x[k], memory)
        if name == "apfl":
            mix = lambda v, w: 0.25 * v + 0.75 * np.asarray(w)  # noqa: E731
            kept = jax.tree.map(mix, kept.params, world.params)
        elif name == "fedrep":  # leaves in order: bias, body, head
            kept = {**world.params, "bias": kept[0], "head": kept[1]}
        models.append(kept)
    check(world, evaluated(world, algorithm.personal, memory), models)


def models(count):
    rows = lambda x: np.zeros((count, *x.shape), np.float32)  # noqa: E731
    return jax.tree.map(rows, worlds.make().params)


MEMORIES = {
    "left_out": (lambda: (), r"memory=\(\) must be a pytree of arrays \[4, "),
    "none": (lambda: None, "memory=None must be a pytree of arrays"),
    "short": (lambda: models(3), r"\['bias'\]='array \[3, 3\]' must be an array \[4, "),
    "long": (lambda: models(5), r"\['bias'\]='array \[5, 3\]' must be an array \[4, "),
    "scalar": (lambda: (models(4), 1.0), r"memory\[1\]='array \[\]' must be an array"),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_memory_that_is_not_of_the_clients_is_refused_by_name(name):
    world, (memory, said) = worlds.make(np.array([5, 0, 9, 2])), MEMORIES[name]
    with pytest.raises(ValueError, match=said):
        evaluated(world, PERSONAL["ditto"]().personal, memory())


def test_a_summary_by_hand():
    values = np.array([np.nan, 0.0, 1.0, 0.5, 0.7, 0.9])
    examples = np.array([0, 1, 2, 4, 8, 16])
    taken = np.array([3, 0, 0, 2, 0, 1])
    found = evaluation.summary(values, examples, n_min=2, taken=taken)
    assert (found.clients, found.n_min) == (4, 2)
    assert found.example_mean == pytest.approx((2 + 2 + 5.6 + 14.4) / 31)
    assert found.client_mean == pytest.approx((1 + 0.5 + 0.7 + 0.9) / 4)
    assert found.median == pytest.approx(0.8)
    assert (found.p10, found.p90) == pytest.approx((0.56, 0.97))
    assert found.worst_decile == 0.5
    assert [d.smallest for d in found.deciles] == [2, 4, 8, 16]
    assert [d.mean for d in found.deciles] == [1.0, 0.5, 0.7, 0.9]
    assert (found.seen, found.new) == pytest.approx((0.7, 0.85))
    losses = evaluation.summary(values, examples, n_min=2, higher_is_better=False)
    assert losses.worst_decile == 1.0 and losses.seen is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_counted_and_in_no_mean(bad):
    values = np.array([np.nan, bad, 0.2, bad, 0.4, 0.9])
    examples = np.array([0, 1, 1, 8, 2, 4])
    taken = np.array([0, 1, 0, 0, 1, 1])
    found = evaluation.summary(values, examples, n_min=2, taken=taken)
    # One of the two has fewer than n_min examples: it is out of the example mean too.
    assert found.example_mean == pytest.approx((0.2 + 0.8 + 3.6) / 7)
    assert (found.nonfinite, found.clients) == (2, 2)
    finite = np.isfinite(values)
    wanted = evaluation.summary(
        values[finite], examples[finite], n_min=2, taken=taken[finite]
    )
    assert found == wanted._replace(nonfinite=2)
    assert wanted.nonfinite == 0
    # The client without examples is not one whose value failed.
    assert evaluation.summary(np.array([bad, 1.0]), np.array([0, 1])).nonfinite == 0
    assert evaluation.summary(np.full(2, bad), np.ones(2, int)) is None


def test_nobody_gives_no_metric():
    nan = np.full(3, np.nan)
    assert evaluation.summary(nan, np.zeros(3, int)) is None
    assert evaluation.summary(np.ones(3), np.ones(3, int), n_min=2) is None
    found = evaluation.summary(np.ones(3), np.ones(3, int), taken=np.ones(3, int))
    assert found.new is None and found.seen == 1.0
    world = worlds.make(np.array([0, 0, 0]))
    assert np.isnan(evaluated(world).values["loss"]).all()


def test_a_client_of_many_windows_compiles_nothing_more():
    world = worlds.make(np.array([600, 3]))
    with worlds.compilations() as compiled:
        evaluated(world)
    assert compiled["jit(run)"] == 1
