"""A federation whose clients train part of the model; training in one place; tuning."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trustml import config as config_lib
from trustml import rng
from trustml.data import dataset, tokenizers
from trustml.experiments import build, centralised, federate, tune


@pytest.fixture(scope="module")
def data():
    """Forty texts whose label is their first word."""
    numbers = np.random.default_rng(0)
    words = np.array(["red", "blue", "green", "grey"])

    def split(count):
        labels = numbers.integers(0, 3, count)
        texts = [
            [str(words[label]), *map(str, numbers.choice(words, 2))] for label in labels
        ]
        return dataset.Split(labels.astype(np.int32), texts)

    return dataset.assemble(
        {"train": split(40), "valid": split(10), "test": split(10)},
        label_names=("r", "b", "g"),
        max_length=3,
        tokenizer=tokenizers.hashed(64),
        length_edges=(5,),
        digest_of=("x",),
        name="colours",
        source="s",
        licence="l",
    )


def _config(**changes):
    cfg = config_lib.default()
    cfg.experiment = "federate"
    cfg.privacy.enabled = False
    cfg.model.width, cfg.model.hidden = 4, ()
    cfg.optimizer.name, cfg.optimizer.learning_rate = "sgd", 0.5
    cfg.federated.partition, cfg.federated.clients, cfg.federated.cohort = "iid", 8, 3
    cfg.federated.lanes = 1
    cfg.train.steps, cfg.train.batch_size, cfg.train.num_devices = 2, 4, 1
    for field, value in changes.items():
        cfg.update_from_flattened_dict({field: value})
    return config_lib.from_config_dict(cfg)


def test_only_the_chosen_leaves_are_trained_and_sent(data, tmp_path):
    made = _config(**{"privacy.trainable": ("output/*",)})
    task = build.task(made, data)
    trained = federate.fit(made, data, task, tmp_path, quiet=True)
    start = task.init(rng.step_key(rng.stream(rng.root(0), "init"), 0))
    np.testing.assert_array_equal(
        trained.params["table"]["embedding"], start["table"]["embedding"]
    )
    assert not np.array_equal(trained.params["output"]["bias"], start["output"]["bias"])
    assert trained.sent == 4 * 3 + 3
    # Killed after the last round: the same again, from what was kept.
    again = federate.fit(made, data, task, tmp_path, quiet=True)
    for a, b in zip(*map(jax.tree.leaves, (trained.params, again.params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_in_one_place_equals_a_loop(data, tmp_path):
    made = _config(experiment="centralised", **{"train.log_every": 2})
    made = _with_steps(made, 25)
    task = build.task(made, data)
    found = centralised.fit(made, data, task, tmp_path, quiet=True)
    params = task.init(rng.step_key(rng.stream(rng.root(0), "init"), 0))
    rows = centralised._order(made, 40)
    assert sorted(rows.reshape(-1)[:40].tolist()) == list(range(40))
    assert rows.reshape(-1)[:40].tolist() != list(range(40))
    optimizer = optax.sgd(0.5)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
        def mean(params):
            losses = jax.vmap(task.loss, (None, 0, None))(
                params, batch, jax.random.key(7)
            )
            return losses.mean()

        updates, state = optimizer.update(jax.grad(mean)(params), state)
        return optax.apply_updates(params, updates), state

    for row in rows:
        batch = {name: jnp.asarray(column[row]) for name, column in data.train.items()}
        params, state = step(params, state, batch)
    for a, b in zip(*map(jax.tree.leaves, (params, found.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert found.rows[-1]["step"] == 25


def _with_steps(config, steps):
    train = dataclasses.replace(config.train, steps=steps)
    return dataclasses.replace(config, train=train)


def test_the_best_rates_are_trained_for_every_seed(data, tmp_path, monkeypatch):
    """Of runs that are made up: rates 0.1 and 2 are the best, at seed 0."""
    done = []

    def fit(config, data, task, place, quiet):
        rates = config.optimizer.learning_rate, config.federated.server_learning_rate
        done.append((*rates, config.seed))
        valid = float("nan") if rates[0] == 9 else rates[0] * -1 + rates[1] * 0.1
        rows = [{"nonprivate/valid_accuracy": valid}]
        return types.SimpleNamespace(rows=rows, params=config.seed)

    def measure(task, params, data, split):
        return {"accuracy": types.SimpleNamespace(value=0.5 + params / 10)}

    monkeypatch.setattr(federate, "fit", fit)
    monkeypatch.setattr(tune.scores, "measure", measure)
    monkeypatch.setattr(build, "dataset", lambda config: data)
    made = _config(
        experiment="tune",
        **{
            "tune.client_rates": (0.1, 0.5, 9.0),
            "tune.server_rates": (1.0, 2.0),
            "tune.shared_rate": 0.5,
        },
    )
    tune.run(made, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["budget"] == 6 and len(report["tried"]) == 6
    tuned = report["tuned"]
    assert (tuned["client_rate"], tuned["server_rate"]) == (0.1, 2.0)
    cell = report["cell"]
    assert (cell["client_rate"], cell["server_rate"]) == (0.1, 2.0)
    assert cell["seed"] == made.seed and cell["algorithm"] == "fedavg"
    assert tuned["values"] == [0.5, 0.6, 0.7]
    # Student's t with two degrees of freedom: 4.3027 * 0.1 / sqrt(3) = 0.2484.
    assert tuned["hi"] == pytest.approx(0.6 + 0.2484, abs=1e-3)
    assert report["shared"]["client_rate"] == 0.5
    assert report["shared"]["server_rate"] == 2.0
    assert len(done) == 6 + 3 + 3
    tune.seeds(made, tuned, data, build.task(made, data), tmp_path)  # all of it is kept
    assert len(done) == 12
