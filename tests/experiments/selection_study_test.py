"""Experiment `selection_study`: small studies, and one round against a plain loop.

The study on nlu_eval, 10 seeds, is the config's: configs/fl_selection.py.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml import config as config_lib
from trustml import rng
from trustml.experiments import (
    build,
    federation,
    selection_page,
    selection_study,
    selection_worlds,
)
from trustml.experiments.selection_study import Job
from trustml.specs import selection

WORDS = ("sun", "rain", "jazz", "rock", "lamp", "door")


def make_config(tmp_path, **changes):
    file = tmp_path / "small.jsonl"
    rng = np.random.default_rng(0)
    rows = []
    for n in range(150):
        label = n % 3
        words = [WORDS[2 * label + rng.integers(2)], *rng.choice(WORDS, 2)]
        rows.append({"text": " ".join(words), "label": f"l{label}"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = config_lib.default()
    cfg.experiment = "selection_study"
    cfg.data.path, cfg.data.max_length = str(file), 4
    cfg.data.vocabulary, cfg.data.vocabulary_size = "train", 8
    cfg.model.name = "logistic"
    cfg.privacy.enabled = False
    cfg.optimizer.name, cfg.optimizer.learning_rate = "sgd", 1.0
    cfg.federated.clients, cfg.federated.cohort = 20, 5
    cfg.federated.size_cv, cfg.federated.threshold = 1.0, 6
    cfg.federated.periods, cfg.federated.storage = 2, 4
    cfg.federated.retention = "fifo"
    cfg.train.steps, cfg.train.batch_size, cfg.train.num_devices = 4, 5, 1
    cfg.train.eval_every = 1
    cfg.selection.seeds, cfg.selection.correlated_seeds = 2, 1
    cfg.selection.arms = ("uniform", "capped", "activity", "unbiased")
    for name, value in changes.items():
        cfg.update_from_flattened_dict({name.replace("__", "."): value})
    return config_lib.from_config_dict(cfg)


# Programs here run for a moment: compiling them well costs more than it gives.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TRACED = []


def prepare(config):
    """The study's `prepare`, counting in `TRACED` how often the model is traced."""
    plain = build.task

    def task(*args):
        made = plain(*args)

        def loss(*args):
            TRACED.append("loss")
            return made.loss(*args)

        def predict(*args):
            TRACED.append("predict")
            return made.predict(*args)

        return made._replace(loss=loss, predict=predict)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=FAST))
        patch.setattr(build, "task", task)
        return selection_study.prepare(config, build.dataset(config))


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    return prepare(make_config(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def one_round(tmp_path_factory):
    changes = {"train__steps": 1, "train__batch_size": 64, "train__eval_every": 0}
    return prepare(make_config(tmp_path_factory.mktemp("data"), **changes))


def test_a_study_from_end_to_end(tmp_path, ready, capsys, monkeypatch):
    monkeypatch.setattr(selection_study, "prepare", lambda config, data: ready)
    out = tmp_path / "out"
    path = selection_study.run(ready.config, out)
    numbers = json.loads((out / "report.json").read_text())
    rows = numbers["selection"]
    assert len(rows) == 2 * 3 * 4 and {row["seeds"] for row in rows} == {1, 2}
    assert {row["world"] for row in rows} == {"given", "correlated"}
    for row in rows:
        assert row["round"] == [1, 2, 3, 4] and len(row["curve"][0]) == 4
        assert abs(sum(row["share"]) - 1) < 1e-9 and abs(sum(row["held"]) - 1) < 1e-9
    assert len(numbers["growth"]) == 2 * 3
    page = path.read_text()
    for text in (
        "Does selection by activity save rounds?",
        "Is the gain larger where data arrive over time?",
        "Where does it reverse?",
        "a is proportional to n^1.5",  # of 'capped'
        "a is the target, exactly",  # of 'unbiased'
        "By activity less the same with inverse probabilities",
        "by activity at 1/p",
    ):
        assert text in page, text
    assert page.count("<svg") == 4
    assert len(list((out / "runs").iterdir())) == 3 * 3 * 4
    assert "36/36" in capsys.readouterr().out
    assert selection_study.run(ready.config, out) == path
    assert "finished already" in capsys.readouterr().out


def test_goes_on_with_the_first_run_that_is_missing(tmp_path, ready, monkeypatch):
    spec = dataclasses.replace(ready.config.selection, seeds=1, correlated_seeds=0)
    config = dataclasses.replace(ready.config, selection=spec)
    ready = ready._replace(config=config)
    trained, plain = [], selection_study.train

    def train(ready, job):
        if len(trained) == 5:
            raise KeyboardInterrupt
        trained.append(job)
        return plain(ready, job)

    monkeypatch.setattr(selection_study, "train", train)
    with pytest.raises(KeyboardInterrupt):
        selection_study.collect(ready, tmp_path / "a", quiet=True)
    first, trained = trained, []
    with pytest.raises(KeyboardInterrupt):
        selection_study.collect(ready, tmp_path / "a", quiet=True)
    second, trained = trained, []
    found = selection_study.collect(ready, tmp_path / "a", quiet=True)
    assert [*first, *second, *trained] == list(selection_study.jobs(config))
    whole = found[first[0]]
    assert whole == plain(ready, first[0])  # bit for bit, and as JSON gives it back
    rows = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 13))
    # What other data left is not taken over.
    other, trained = ready._replace(fingerprint="other"), []
    with pytest.raises(KeyboardInterrupt):
        selection_study.collect(other, tmp_path / "a", quiet=True)
    assert trained == first


def test_all_runs_use_one_program(ready):
    wanted = list(selection_study.jobs(ready.config))
    selection_study.train(ready, wanted[0])
    chosen = wanted[5::7]  # every arm, setting and world
    before = len(TRACED)
    assert before
    for field, many in (("arm", 4), ("setting", 3), ("world", 2)):
        assert len({getattr(job, field) for job in chosen}) == many
    for job in chosen:
        selection_study.train(ready, job)
    assert len(TRACED) == before


@pytest.mark.parametrize("arm", ["uniform", "threshold", "unbiased"])
def test_a_round_is_the_weighted_mean_of_its_clients(one_round, arm):
    """One step of each client, from zero: a sum of gradients."""
    ready, config = one_round, one_round.config
    data = build.dataset(config)
    seen = []

    def score(params):
        seen.append(params)
        return jnp.float32(0), jnp.zeros(len(data.test["label"]))

    job = Job(1, "given", "static_all", arm)
    outcome = selection_study.train(ready._replace(score=score), job)
    world = ready.world(1, "given")
    sizes = np.diff(world.offsets)
    fitted = selection_study.fitting(config, arm, sizes)
    assert fitted.federated.weighting == (
        "horvitz_thompson" if arm == "unbiased" else "data"
    )
    # The same coins as the study threw.
    seed = rng.seed_128(rng.stream(rng.root(1), "selection"))
    chosen_by = federation.selector(fitted, len(sizes), seed)
    state = chosen_by.init(sizes)
    members = chosen_by.select(state, 0)[0].clients
    inclusion = chosen_by.inclusion(state)
    if arm == "unbiased":
        weights = sizes[members] / sizes.sum() / inclusion[members]
    else:
        weights = sizes[members] / sizes[members].sum()
    zero = ready.task.init(jax.random.key(0))
    wanted = jax.tree.map(lambda x: np.zeros(x.shape), zero)
    for member, weight in zip(members, weights, strict=True):
        rows = world.rows[world.offsets[member] : world.offsets[member + 1]]
        batch = {name: column[rows] for name, column in data.train.items()}

        def mean(params, batch=batch):
            loss = jax.vmap(lambda one: ready.task.loss(params, one, None))(batch)
            return loss.mean()

        grads = jax.grad(mean)(zero)
        wanted = jax.tree.map(lambda w, g, s=weight: w - s * g, wanted, grads)
    (params,) = seen
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        params,
        wanted,
    )
    assert outcome.examples == [int(sizes[members].sum())]


def test_the_first_periods_are_fitted_to_who_holds_data(tmp_path):
    config = make_config(tmp_path)
    sizes = np.array([0] * 14 + [1, 1, 2, 3, 3, 4])
    found = {
        arm: selection_study.fitting(config, arm, sizes).federated
        for arm in ("uniform", "capped", "threshold", "activity")
    }
    assert found["threshold"].threshold == 4 and found["threshold"].cohort == 1
    assert found["uniform"].cohort == found["activity"].cohort == 5
    # The cap is 4 times 5 of 6, hence 1; of 20 it would leave room for 6 of 5.
    assert found["capped"].cap == pytest.approx(4 * 20 / 6)
    for arm, spec in found.items():
        fitted = selection_study.fitting(config, arm, sizes)
        state = federation.selector(fitted, 20, 0).init(sizes)
        inclusion = federation.selector(fitted, 20, 0).inclusion(state)
        assert inclusion.sum() == pytest.approx(spec.cohort)
        assert not inclusion[sizes == 0].any()


def test_worlds_are_of_their_seed(ready):
    config, data = ready.config, build.dataset(ready.config)
    one, again, other = (
        selection_worlds.make(config, data, seed, "given") for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.rows, again.rows)
    assert not np.array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(np.sort(one.rows), np.arange(len(one.rows)))
    # Arrivals are in no order of the data.
    owner = np.repeat(np.arange(20), np.diff(one.offsets))
    falls = (np.diff(one.rows) < 0) & (np.diff(owner) == 0)
    assert falls.sum() > 20
    sizes = np.diff(one.offsets)
    lightest, heaviest = (sizes[one.tenth == part] for part in (0, 9))
    assert lightest.max() <= heaviest.min()


def test_what_a_tenth_meets_is_a_mean_over_its_clients(ready):
    config, data = ready.config, build.dataset(ready.config)
    world = selection_worlds.make(config, data, 0, "given")
    wrong = np.random.default_rng(0).random(len(data.test["label"])) < 0.4
    by_label = np.array([wrong[data.test["label"] == n].mean() for n in range(3)])
    label = np.asarray(data.train["label"])
    for part in range(10):
        errors = []
        for client in np.flatnonzero(world.tenth == part):
            rows = world.rows[world.offsets[client] : world.offsets[client + 1]]
            errors.append(by_label[label[rows]].mean())
        assert world.meets[part] @ wrong == pytest.approx(np.mean(errors))


@pytest.mark.parametrize("arrival", ["scattered", "ordered"])
def test_arrivals(tmp_path, arrival):
    config = make_config(tmp_path, selection__arrival=arrival)
    data = build.dataset(config)
    world = selection_worlds.make(config, data, 0, "given")
    calendar = world.calendars["continual"]
    sizes = np.diff(world.offsets)
    np.testing.assert_array_equal(calendar.hi[-1], sizes)
    assert np.all(calendar.hi[0] <= calendar.hi[1])
    if arrival == "ordered":
        owner = np.repeat(np.arange(20), sizes)
        assert np.all(np.diff(world.rows)[np.diff(owner) == 0] > 0)
        np.testing.assert_array_equal(calendar.hi[0], sizes // 2)
    else:
        # About half fall into each period, +-4 standard deviations of coins.
        assert abs(calendar.hi[0].sum() - sizes.sum() / 2) < 2 * np.sqrt(sizes.sum())
        assert np.any(calendar.hi[0] > sizes // 2 + 1)  # at no even pace
    held = world.calendars["static_capped"]
    np.testing.assert_array_equal(held.hi[0] - held.lo[0], np.minimum(sizes, 4))


@pytest.mark.parametrize(
    "changes, message",
    [
        pytest.param({"selection__arms": ("capped",)}, "lacks 'uniform'", id="arms"),
        pytest.param(
            {"selection__settings": ("continual",)}, "lacks 'static_all'", id="settings"
        ),
        pytest.param(
            {"selection__arms": ("uniform", "uniform")}, "repeats one", id="repeated"
        ),
        pytest.param(
            {"selection__correlated_seeds": 3}, "exceeds selection.seeds=2", id="seeds"
        ),
        pytest.param(
            {"federated__robust": "median", "federated__weighting": "uniform"},
            "compares selection alone",
            id="robust",
        ),
        pytest.param(
            {"privacy__enabled": True, "privacy__noise_multiplier": 1.0},
            "privacy.enabled=True does not go with|has no sensitivity",
            id="private",
        ),
        pytest.param({"selection__target": 1.0}, "strictly between", id="target"),
        pytest.param(
            {"experiment": "train", "model__name": "language_model"},
            "predicts tokens, and experiment='train' wants labels",
            id="language model",
        ),
        pytest.param(
            {"federated__partition": "natural", "data__user_column": "text"},
            "deals the data anew",
            id="natural",
        ),
    ],
)
def test_refuses_studies_that_make_no_sense(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path, **changes)


def test_names_cover_what_can_be_asked_for():
    assert set(selection_page.NAMES) == set(selection.ARMS)
    assert set(selection_page.SETTINGS) == set(selection.SETTINGS)
