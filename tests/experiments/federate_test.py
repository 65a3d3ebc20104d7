"""Experiment `federate`: end to end, resumed to the bit, private, refused early."""

import json
import types

import dp_accounting
import jax
import numpy as np
import pytest

from trustml import config as config_lib
from trustml import intervals, specs
from trustml.experiments import (
    absence,
    build,
    federate,
    federate_page,
    federation,
    scores,
    tune,
)
from trustml.federated import stragglers, timeline, user_privacy


def config(**changed):
    """A small run on part of SNIPS."""
    cfg = config_lib.default()
    cfg.experiment = "federate"
    cfg.data.name = "snips"
    cfg.data.limit = 600
    cfg.data.max_length = 12
    cfg.data.vocabulary_size = 256
    cfg.model.name = "bag"
    cfg.model.width = 8
    cfg.model.hidden = ()
    cfg.privacy.enabled = False
    cfg.optimizer.name = "sgd"
    cfg.optimizer.learning_rate = 0.3
    cfg.train.steps = 6
    cfg.train.batch_size = 10
    cfg.train.log_every = 2
    cfg.train.eval_every = 3
    cfg.train.checkpoint_every = 2
    cfg.train.num_devices = 1
    cfg.federated.clients = 20
    cfg.federated.cohort = 5
    cfg.federated.size_cv = 1.0
    cfg.federated.lanes = 2
    for name, value in changed.items():
        section, _, field = name.partition("__")
        setattr(getattr(cfg, section), field, value)
    return config_lib.from_config_dict(cfg)


def test_end_to_end(tmp_path):
    page = federate.run(config(train__steps=30, federated__cohort=10), tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    least = found["baseline"]["accuracy"]["value"]
    assert found["scores"]["accuracy"]["value"] > 2 * least
    assert found["clients"]["clients"] == 20
    assert sum(row["clients"] for row in found["deciles"]) <= 20
    text = page.read_text()
    assert "What is optimised" in text and "not private" in text
    assert federate.run(config(train__steps=30, federated__cohort=10), tmp_path) == page


def test_clients_in_tenths_have_the_level_that_is_asked_for():
    own, sizes = np.random.default_rng(0).beta(8, 2, 100), np.arange(1, 101)
    found = federate_page.deciles(sizes, own, np.ones(100), 0.8)[0]["accuracy"]
    assert found == intervals.mean(own[:10], 0.8, bounds=(0, 1))._asdict()


@pytest.mark.slow
def test_personal_models_on_what_clients_kept_out(tmp_path):
    run = config(
        federated__algorithm="ditto",
        federated__held_out=0.25,
        federated__clients=8,
        train__steps=4,
    )
    federate.run(run, tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["client_accuracy_on"] == "held out"
    both = found["personal_accuracy"]
    assert both["own"]["clients"] == both["server"]["clients"] > 0
    assert 0 <= both["own"]["worst_decile"] <= both["own"]["client_mean"] <= 1
    assert "own models have" in (tmp_path / "report.html").read_text()


def weights(found):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(found.params)]


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(
            {"federated__algorithm": "scaffold", "federated__weighting": "uniform"},
            marks=pytest.mark.slow,
        ),
        {
            "privacy__enabled": True,
            "privacy__noise_multiplier": 0.8,
            "privacy__noise_seed": 3,
            "federated__weighting": "uniform",
            "federated__selection": "capped_power",
        },
        pytest.param(
            {
                "federated__selection": "oort",
                "federated__availability": "diurnal",
                "federated__step_cv": 1.0,
                "federated__deadline": 6.0,
                "federated__over_selection": 1.5,
                "federated__dropout": 0.1,
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["clients remember", "private", "selection listens, some are absent"],
)
def test_a_killed_run_goes_on_to_the_bit(tmp_path, changed, monkeypatch):
    run = config(**changed)
    data = build.dataset(run)
    task = build.task(run, data)
    whole = federate.fit(run, data, task, tmp_path / "whole", quiet=True)

    def killed(*args, **kwargs):
        row = kept(*args, **kwargs)
        if args[1] == 4:
            raise KeyboardInterrupt
        return row

    saver = federate.checkpoint.Checkpointer
    kept = saver.save
    monkeypatch.setattr(saver, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        federate.fit(run, data, task, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(saver, "save", kept)
    again = federate.fit(run, data, task, tmp_path / "cut", quiet=True)
    assert weights(again) == weights(whole)
    np.testing.assert_array_equal(again.taken, whole.taken)
    jax.tree.map(np.testing.assert_array_equal, again.tally, whole.tally)
    assert again.rows == whole.rows


@pytest.mark.parametrize("weighting", ["uniform", "capped", "horvitz_thompson"])
def test_a_private_run_chooses_its_lanes(tmp_path, weighting):
    # As `configs/federated.py:private` does; the probe meets the chain with its noise.
    run = config(
        federated__lanes=0,
        federated__weighting=weighting,
        privacy__enabled=True,
        privacy__noise_multiplier=0.8,
        privacy__noise_seed=3,
        train__steps=2,
    )
    data = build.dataset(run)
    found = federate.fit(run, data, build.task(run, data), tmp_path, quiet=True)
    assert found.rounds == 2 and np.isfinite(found.privacy.epsilon_as_run)
    # The seed is known, so the noise and the cohorts are; the page must say so.
    assert federate_page.promised(run, found)["noise_secret"] is False
    card = federate_page.told(run, found)
    assert card.tone == "warn" and federate_page.REPRODUCIBLE in card.points
    secret = config(**PRIVATE)
    assert federate_page.promised(secret, found)["noise_secret"] is True
    assert federate_page.told(secret, found).tone == "good"
    (said,) = federate_page._uncovered(run, data, found)
    assert "vocabulary" not in said and "who took part" in said
    built = config(**PRIVATE, data__vocabulary="train")
    (said,) = federate_page._uncovered(built, data, found)
    assert "the vocabulary, which was built from clients' texts" in said


def test_who_is_absent_is_counted_and_told(tmp_path):
    run = config(
        federated__availability="bernoulli",
        federated__reachable=0.6,
        federated__over_selection=2.0,
        federated__dropout=0.2,
        train__steps=20,
    )
    data = build.dataset(run)
    task = build.task(run, data)
    found = federate.fit(run, data, task, tmp_path, quiet=True)
    fates = dict(zip(stragglers.FATES, found.tally.fates, strict=True))
    assert fates["heard"] == found.taken.sum() <= 20 * 5
    assert fates["late"] == fates["dropped_before"] == 0
    asked = sum(fates.values())
    # Intervals of five standard deviations.
    assert abs(fates["unavailable"] / asked - 0.4) < 5 * np.sqrt(0.24 / asked)
    reached = asked - fates["unavailable"]
    assert abs(fates["dropped_after"] / reached - 0.2) < 5 * np.sqrt(0.16 / reached)
    assert 0 < found.tally.wasted < found.tally.computed
    numbers = federate_page.missing(found, np.diff(found.store.offsets))
    assert np.mean(numbers["heard_by_speed"]) == pytest.approx(found.taken.mean() / 20)
    (section,) = federate_page.absences(found, np.diff(found.store.offsets))
    assert "10 are asked and the first 5 heard" in section.text[0]


def test_first_come_first_heard_ends_amplification(tmp_path):
    run = config(
        privacy__enabled=True,
        privacy__noise_multiplier=2.0,
        privacy__delta=1e-3,
        federated__weighting="uniform",
        federated__local_steps=2,
        federated__over_selection=1.5,
        train__steps=3,
    )
    data = build.dataset(run)
    found = federate.fit(run, data, build.task(run, data), tmp_path, quiet=True)
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(2.0), 3)
    pld = dp_accounting.pld.PLDAccountant(
        dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    )
    expected = pld.compose(event).get_epsilon(1e-3)
    assert found.privacy.epsilon_as_run == pytest.approx(expected, rel=1e-3)
    alone = config(**{**PRIVATE, "federated__dropout": 0.3})
    plain = config(**PRIVATE)
    sampled = [
        absence.make(one).selector(federation.selector(one, 20, seed=0))
        for one in (alone, plain)
    ]
    claims = [s.event(s.init(np.full(20, 5)), 1.0, 2) for s in sampled]
    assert claims[0] == claims[1]  # who fails for reasons of its own changes nothing


def test_the_promise_is_that_of_the_selector(tmp_path):
    run = config(
        privacy__enabled=True,
        privacy__noise_multiplier=1.0,
        privacy__delta=1e-3,
        federated__selection="capped_power",
        federated__weighting="uniform",
        train__steps=2,
    )
    data = build.dataset(run)
    found = federate.fit(run, data, build.task(run, data), tmp_path, quiet=True)
    selector = federation.selector(run, 20, seed=0)
    state = selector.init(np.diff(found.store.offsets))
    inclusion = selector.inclusion(state)
    expected = user_privacy.account(selector.event(state, 1.0, 2), delta=1e-3)
    assert found.privacy.epsilon_as_run == pytest.approx(expected.epsilon_as_run)
    assert found.privacy.rate == pytest.approx(inclusion.max())
    assert inclusion.max() <= 4 * 5 / 20 + 1e-9


def test_noise_is_made_for_the_largest_weight_of_any_period():
    run = config(
        privacy__enabled=True,
        privacy__noise_multiplier=1.0,
        federated__selection="capped_power",
        federated__weighting="horvitz_thompson",
    )
    # Alike at first; then one client of 20 holds 40 times the examples of the others.
    later = np.full(20, 2)
    later[3] = 80
    calendar = timeline.keep_all(np.stack([np.full(20, 2), later]))
    selector = federation.selector(run, 20, seed=0)
    first, last = (
        federation.weighting(
            run, selector, selector.init(timeline.sizes(calendar, period))
        )
        for period in (0, 1)
    )
    found = federate._heaviest(run, selector, calendar, first)
    assert found.s_max == last.s_max > 1.5 * first.s_max
    plain = config(federated__weighting="uniform")
    assert federate._heaviest(plain, selector, calendar, first) is first


ROBUST = {"federated__weighting": "uniform", "federated__cohort": 5}
PRIVATE = {
    "privacy__enabled": True,
    "privacy__noise_multiplier": 1.0,
    "federated__weighting": "uniform",
}

# Options of examples' privacy that would change the promise or the noise, had anybody
# read them: each is refused, as is what corrects for noise that clients do not see.
IDLE = {
    "privacy__relation": "replace_one",
    "privacy__rule": "quantile",
    "privacy__bands": 4,
    "privacy__noise_schedule": "exponential",
    "privacy__sampler": "balls_in_bins",
    "privacy__method": "ghost",
    "optimizer__name": "adam_bc",
}


@pytest.mark.parametrize("field", IDLE)
def test_options_that_nobody_reads_are_refused(field):
    name = field.replace("__", ".")
    more = {"privacy__noise_decay": 0.9} if field.endswith("schedule") else {}
    with pytest.raises(ValueError, match=f"{name}='?{IDLE[field]}'? "):
        config(**PRIVATE, **{field: IDLE[field]}, **more)
    # With a cohort of fixed size one client replaces another: this is what is promised.
    if field == "privacy__relation":
        fixed = PRIVATE | {"federated__selection": "fixed_size"}
        assert config(**fixed, **{field: IDLE[field]}).privacy.enabled


def test_a_grid_of_bits_is_refused():
    with pytest.raises(ValueError, match="privacy.grid_bits=12 has no effect"):
        config(**PRIVATE, privacy__grid_bits=12, privacy__accountant="rdp")


def test_trials_of_other_data_are_not_taken(tmp_path):
    """A kept figure is that of its data and settings, or is not used."""
    run = config(train__steps=2, federated__server_learning_rate=1.0)
    data = build.dataset(run)
    task = build.task(run, data)
    found = tune.trial(run, data, task, tmp_path)
    (kept,) = tmp_path.glob("trials/*/valid.json")
    kept.write_text(kept.read_text().replace(f"{found['valid']}", "0.123456789"))
    assert tune.trial(run, data, task, tmp_path)["valid"] == 0.123456789
    other = data._replace(digest="0" * 32)
    with pytest.raises(ValueError, match="other data"):
        tune.trial(run, other, task, tmp_path)


def test_the_figure_of_a_cell_is_the_same_from_kept_trials(tmp_path, monkeypatch):
    """Of several scores the first is what counts; a file has them by the alphabet."""
    trained = types.SimpleNamespace(rows=[{"nonprivate/valid_accuracy": 0.5}], params=0)
    monkeypatch.setattr(federate, "fit", lambda *args, **kwargs: trained)
    measured = {
        "token_f1": scores.Score(0.7, 0.0, 1.0, 9),
        "exact_match": scores.Score(0.2, 0.0, 1.0, 9),
    }
    monkeypatch.setattr(tune.scores, "measure", lambda *args: measured)
    data = build.dataset(config())._replace(digest="d")
    rates = {"client_rate": 0.1, "server_rate": 1.0}
    run = config(tune__seeds=1)
    for _ in range(2):
        found = tune.seeds(run, rates, data, build.task(run, data), tmp_path)
        assert found["figure"] == "token_f1" and found["value"] == 0.7
        assert found["others"] == {"exact_match": [0.2]}


PRIVATE = {
    "privacy__enabled": True,
    "privacy__noise_multiplier": 1.0,
    "federated__weighting": "uniform",
}
REFUSED = {
    "who is asked beyond the clients": (
        {"federated__cohort": 15, "federated__over_selection": 1.5},
        "federated.over_selection=1.5 asks 23 clients and exceeds the 20 clients",
    ),
    "a deadline that data decide about": (
        {**PRIVATE, "federated__deadline": 9.0},
        "federated.deadline=9.0 lets the number of its examples decide",
    ),
    "nobody to be reached": (
        {"federated__availability": "bernoulli", "federated__reachable": 0.0},
        "federated.reachable=0.0 must be in (0, 1]",
    ),
    "cohort beyond the clients": (
        {"federated__cohort": 21},
        "federated.cohort=21 exceeds the 20 clients",
    ),
    "clients beyond the examples": (
        {"federated__clients": 10**6},
        "federated.clients=1000000 exceeds",
    ),
    "weights by data under privacy": (
        {"privacy__enabled": True, "privacy__noise_multiplier": 1.0},
        "federated.weighting='data' has no sensitivity",
    ),
    "robust and private": (
        {
            "privacy__enabled": True,
            "privacy__noise_multiplier": 1.0,
            "federated__weighting": "uniform",
            "federated__robust": "median",
        },
        "federated.robust='median'",
    ),
    "selection by losses under privacy": (
        {
            "privacy__enabled": True,
            "privacy__noise_multiplier": 1.0,
            "federated__weighting": "uniform",
            "federated__selection": "oort",
        },
        "oort",
    ),
    "scaffold with adam": (
        {
            "federated__algorithm": "scaffold",
            "federated__weighting": "uniform",
            "optimizer__name": "adam",
        },
        "optimizer.name='adam'",
    ),
    "exact sums under privacy": (
        {
            "privacy__enabled": True,
            "privacy__noise_multiplier": 1.0,
            "federated__weighting": "uniform",
            "federated__exact": True,
            "federated__group": 1,
        },
        "federated.exact=True rounds messages after",
    ),
    "promises to users whose rows are dealt to many clients": (
        PRIVATE
        | {"privacy__unit": "user", "data__user_column": "who"}
        | {"data__name": "csv", "data__path": "rows.csv", "data__limit": 0},
        "privacy.unit='user' is not what is promised",
    ),
    "examples of a user": (
        PRIVATE | {"privacy__max_examples_per_user": 3},
        "privacy.max_examples_per_user=3 has no effect",
    ),
    "quantile of norms": (
        PRIVATE | {"privacy__clip_quantile": 0.3},
        "privacy.clip_quantile=0.3 has no effect",
    ),
    "a server optimizer beside FedDyn": (
        {
            "federated__algorithm": "feddyn",
            "federated__weighting": "uniform",
            "federated__server_optimizer": "adam",
        },
        "federated.server_optimizer='adam' has no effect",
    ),
    "a server rate beside q-FFL": (
        {
            "federated__algorithm": "qffl",
            "federated__weighting": "uniform",
            "federated__server_learning_rate": 0.1,
        },
        "federated.server_learning_rate=0.1 has no effect",
    ),
    "decay beside SCAFFOLD": (
        {
            "federated__algorithm": "scaffold",
            "federated__weighting": "uniform",
            "optimizer__weight_decay": 0.1,
        },
        "optimizer.weight_decay=0.1 has no effect",
    ),
    "robust with weights": (
        {"federated__robust": "median", "federated__weighting": "data"},
        "federated.weighting='data' has no effect on federated.robust='median'",
    ),
    "too few for what they are to bear": (
        ROBUST | {"federated__robust": "bulyan", "federated__malicious": 0.45},
        "federated.cohort=5 is fewer than the 15 clients that "
        "federated.robust='bulyan' needs to bear 3",
    ),
    "storage of those who keep all": (
        {"federated__storage": 5},
        "federated.storage=5 has no effect on federated.retention='keep_all'",
    ),
    "SCAFFOLD by medians": (
        {
            "federated__algorithm": "scaffold",
            "federated__weighting": "uniform",
            "federated__robust": "median",
        },
        "federated.robust='median' takes of messages what clients remember",
    ),
    "FedNova by signs": (
        {"federated__algorithm": "fednova", "federated__compression": "sign"},
        "federated.compression='sign' takes a message for one direction",
    ),
    "q-FFL by medians": (
        {
            "federated__algorithm": "qffl",
            "federated__weighting": "uniform",
            "federated__robust": "median",
        },
        "federated.robust='median' takes a message for one direction",
    ),
    "many bits": (
        {"federated__compression": "quantize", "federated__bits": 40},
        "federated.bits=40 must be at most 16",
    ),
    "exact without a group": ({"federated__exact": True}, "federated.group=0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_round(tmp_path, name):
    changed, said = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        run = config(**changed)
        data = build.dataset(run)
        federate.fit(run, data, build.task(run, data), tmp_path, quiet=True)
    assert said in str(caught.value)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_algorithms_of_uniform_means_refuse_weights_by_data():
    with pytest.raises(ValueError, match=r"federated.weighting='data'.*'uniform'"):
        config(federated__algorithm="scaffold")


def test_examples_of_a_client_arrive_in_no_order_of_labels():
    offsets = np.array([0, 40, 40, 100])
    order = federation.arrival(offsets, 0)
    for begin, end in ((0, 40), (40, 100)):
        part = order[begin:end]
        np.testing.assert_array_equal(np.sort(part), np.arange(begin, end))
        assert (np.diff(part) > 0).mean() < 0.75
    np.testing.assert_array_equal(order, federation.arrival(offsets, 0))
    assert (order != federation.arrival(offsets, 1)).any()


def test_more_periods_than_rounds_are_refused():
    said = r"federated.periods=7 must be <= train.steps=6, the rounds there are"
    with pytest.raises(ValueError, match=said):
        config(federated__periods=7)


def test_rounds_that_a_rule_gave_up_are_counted(tmp_path):
    # Poisson cohorts of 5 on average, and 5 are needed.
    run = config(**ROBUST, federated__robust="krum", train__steps=8, train__log_every=4)
    federate.run(run, tmp_path)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    many = sum(json.loads(row)["nonprivate/aborted"] for row in rows)
    assert 0 < many < 8
    page = (tmp_path / "report.html").read_text()
    assert f"In {many} of 8 rounds the model stayed as it was" in page
    assert "is not known where clients differ" in page
    assert "which bears 1 of them lying" in page


@pytest.mark.parametrize(
    ("share", "cohort", "attackers"),
    [(0.1, 5, 1), (0.29, 100, 29), (0.3, 10, 3), (0.0, 10, 0), (0.31, 10, 4)],
)
def test_a_share_of_liars_is_rounded_up(share, cohort, attackers):
    spec = specs.FederatedSpec(malicious=share, cohort=cohort)
    assert spec.attackers == attackers


def test_the_page_of_data_that_arrive_says_so(tmp_path):
    run = config(
        federated__periods=2,
        federated__retention="fifo",
        federated__storage=12,
        train__steps=2,
        train__log_every=1,
    )
    page = federate.run(run, tmp_path).read_text()
    assert "come to 20 clients" in page and "keeps the newest 12" in page
    assert "whether they kept it and trained on it or not" in page
    assert "accuracy on training data" not in page
    assert "their own training examples" not in page


def test_the_page_says_what_was_no_number():
    rows = [{"nonprivate/nonfinite": 2}, {}, {"nonprivate/nonfinite": 1}]
    sound, broken = ({"w": np.array([1.0, x])} for x in (2.0, np.nan))

    def said(params, rows):
        trained = types.SimpleNamespace(params=params, rows=rows)
        return " ".join(federate_page._lost(trained))

    assert said(sound, [{}]) == ""
    assert "3 messages" in said(sound, rows) and "not finite" not in said(sound, rows)
    assert "not finite" in said(broken, [{}])
