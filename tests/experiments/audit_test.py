"""Experiment `audit`: small runs, from the config to the page."""

import json

import numpy as np
import pytest

from trustml import config as config_lib
from trustml.audit import rates
from trustml.experiments import audit, audit_page, build, canary_run
from trustml.privacy import plan as plan_lib


def make_config(tmp_path, **changes):
    file = tmp_path / "small.csv"
    rng = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{int(a > 0)}" for a, b in rng.normal(size=(80, 2))]
    file.write_text("a,b,label\n" + "\n".join(rows) + "\n")
    cfg = config_lib.default()
    cfg.experiment = "audit"
    cfg.data.path = str(file)
    cfg.data.feature_columns = ("a", "b")
    cfg.model.name, cfg.model.hidden = "mlp", (4,)
    cfg.optimizer.name = "sgd"
    cfg.privacy.noise_seed, cfg.privacy.delta = 1, 1e-4
    cfg.privacy.accountant = "rdp"  # quicker to calibrate, and a little above
    cfg.train.steps, cfg.train.batch_size, cfg.train.num_devices = 3, 16, 1
    cfg.audit.canaries, cfg.audit.epsilons = 1000, (4.0,)
    for name, value in changes.items():
        cfg.update_from_flattened_dict({name.replace("__", "."): value})
    return config_lib.from_config_dict(cfg)


def ready_of(config):
    (variant,) = audit.variants(config)
    data = build.dataset(variant)
    task = build.task(variant, data)
    spec = config.audit
    return canary_run.prepare(
        variant, data, task, count=spec.canaries, sample_rate=spec.sample_rate
    )


def test_a_run_from_end_to_end(tmp_path, capsys):
    config = make_config(tmp_path)
    path = audit.run(config, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (one,) = report["audits"]
    bound = one["bounds"][canary_run.GAUSSIAN]
    # 500 canaries a side, one seed: the gate's full sizes are in tests/audit.
    assert 0.4 * one["promised"] < bound["epsilon"] <= one["promised"] <= 4.0
    assert bound["claim"]["epsilon"] == one["promised"]
    assert len(one["bounds"]) == 6 and one["violated_by"] == []
    assert bound["confidence"] == 0.99 and bound["n_in"] + bound["n_out"] == 1000
    text = path.read_text()
    assert "No breach was found" in text and "fair coin" in text
    # What counts is one of a Gaussian at half the steps: by hand, from the numbers.
    with np.load(tmp_path / "out" / "eps=4" / "releases.npz") as arrays:
        units, included = arrays["units"], arrays["included"]
    with np.load(tmp_path / "out" / "eps=4" / "coins.npz") as coins:
        np.testing.assert_array_equal(coins["included"], included)
    assert units.shape == (3, 1000)
    above = units.sum(axis=0) > 1.5
    naive = rates.gaussian_epsilon(
        float(rates.mu(above[included].mean(), above[~included].mean())), 1e-4
    )
    assert bound["epsilon"] < naive
    # Made again from what is on the disk: the same numbers; not for other settings.
    place = tmp_path / "out" / "eps=4" / "releases.npz"
    mark = ready_of(config).fingerprint
    kept = canary_run._kept(place, mark)
    assert kept is not None and canary_run._kept(place, mark[::-1]) is None
    path.unlink()
    audit.run(config, tmp_path / "out")
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert again["audits"] == report["audits"]
    assert "promised epsilon 4, audited: at least" in capsys.readouterr().out


def test_budgets_have_coins_and_noise_of_their_own(tmp_path):
    config = make_config(tmp_path, audit__epsilons=(1.0, 4.0), audit__canaries=100)
    data = build.dataset(config)
    one, two = (
        canary_run.prepare(
            variant, data, build.task(variant, data), count=100, sample_rate=1.0
        )
        for variant in audit.variants(config)
    )
    assert one.fingerprint != two.fingerprint
    assert np.any(np.asarray(one.root.words) != np.asarray(two.root.words))


def test_half_the_noise_breaks_the_claim(tmp_path, monkeypatch):
    """The plan promises epsilon = 4; the mechanism adds half of its noise."""
    make = plan_lib.make

    def lying(*args, **options):
        made = make(*args, **options)
        weak = make(
            *args,
            **(options | {"epsilon": None})
            | {"noise_multiplier": made.noise_multiplier / 2},
        )
        return made._replace(mechanism=weak.mechanism)

    monkeypatch.setattr(plan_lib, "make", lying)
    ready = ready_of(make_config(tmp_path))
    released = canary_run.release(ready, tmp_path / "run", quiet=True)
    bounds = canary_run.bounds(ready, released, alpha=0.01)
    assert bounds[canary_run.headline(ready)].claim.violated
    one = audit_page.Audited(
        name="eps=4",
        promised=ready.plan.epsilon(),
        headline=canary_run.headline(ready),
        bounds=bounds,
        sample_rate=1.0,
        steps=3,
        noise_multiplier=1.0,
        coins="",
        test_accuracy=0.5,
    )
    assert "VIOLATES ITS CLAIM" in audit_page.line(one)
    card = audit_page.kept([one])
    assert card.headline == "No: more leaks than promised at ε = 4."
    assert card.tone == "warn" and "violated by" in card.points[0]
    assert audit_page.close([one]).headline == "It found more than was promised."


def test_sampled_batches_have_no_gaussian_bound(tmp_path):
    config = make_config(tmp_path, audit__sample_rate=0.0, audit__canaries=1000)
    ready = ready_of(config)
    size = len(ready.data.train["label"])
    assert ready.sample_rate == 16 / size
    assert ready.plan.expected_batch_size == pytest.approx(16 / size * (size + 500))
    released = canary_run.release(ready, tmp_path / "run", quiet=True)
    found = canary_run.bounds(ready, released, alpha=0.01)
    assert set(found) == {canary_run.FIXED, canary_run.BAND, canary_run.ONE_RUN}
    assert canary_run.headline(ready) == canary_run.FIXED
    assert all(not bound.claim.violated for bound in found.values())
    # Three steps at q = 1/4: a canary that is in is in the batch in 3/4 of them, off by
    # its noise and by 500 coins a step; 5 standard errors.
    inside = released.units[:, released.included].astype(np.float64)
    z = ready.plan.noise_stddev() / ready.contribution
    error = np.sqrt((z**2 + 0.25) / inside.size)
    assert abs(inside.mean() - ready.sample_rate) < 5 * error


def test_canaries_join_a_selection_of_leaves(tmp_path):
    config = make_config(tmp_path, privacy__trainable=("*bias*",), audit__canaries=100)
    ready = ready_of(config)
    assert ready.contribution == pytest.approx(config.privacy.l2_clip_norm)
    released = canary_run.release(ready, tmp_path / "run", quiet=True)
    assert np.ptp(released.units) > 0
    again = ready.start()  # the step took the buffers of the first state
    assert again.params["canary"].shape == (100,)


REFUSED = {
    "privacy off": ({"privacy__enabled": False}, "no promise to audit"),
    "epsilon given": ({"privacy__epsilon": 3.0}, "set audit.epsilons"),
    "sampler": (
        {"privacy__sampler": "shuffled", "privacy__relation": "replace_special"},
        "privacy.sampler='shuffled' does not go with experiment='audit'",
    ),
    "rule": ({"privacy__rule": "quantile"}, "moves the clip norm"),
    "groups": ({"privacy__group_size": 4}, "privacy.group_size=4"),
    "few": ({"audit__canaries": 20}, "audit.canaries=20 must be at least 100"),
    "rate": ({"audit__sample_rate": 1.5}, "audit.sample_rate=1.5 must be at most 1"),
    "twice": ({"audit__epsilons": (1.0, 1.0)}, "each once"),
    "none": ({"audit__epsilons": ()}, "one budget or more"),
    "alpha": ({"audit__alpha": 1.0}, "audit.alpha=1.0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_audited_is_refused(tmp_path, name):
    changes, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        make_config(tmp_path, **changes)
