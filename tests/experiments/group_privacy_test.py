"""Groups through the runs of a trust report: arrays against a loop, a whole run."""

import json

import numpy as np
import pytest

from tests.experiments import fairness_test as made
from trustml.attacks import metrics
from trustml.experiments import (
    describe,
    evaluate,
    group_clipping,
    group_privacy,
    trust_report,
)
from trustml.fairness import excessive_risk


def config_of(**changes):
    usual = {
        "experiment": "trust_report",
        "privacy__enabled": True,
        "privacy__delta": 1e-3,
        "privacy__noise_seed": 0,
        "privacy__l2_clip_norm": 0.5,
        "report__epsilons": (1.0, 8.0),
    }
    return made.config_of(**{**usual, **changes})


def predictions(rng, n):
    return evaluate.Predictions(
        rng.random(n) < 0.8, rng.exponential(size=n), rng.integers(0, 2, n)
    )


def runs_of(data, seeds=1):
    rng = np.random.default_rng(0)
    n = len(data.test["label"])
    out = []
    for name in ("non-private", "eps=1"):
        seen = describe.Seen(*(predictions(rng, n) for _ in range(3)))
        tested = (seen.tested, *(predictions(rng, n) for _ in range(seeds - 1)))
        private = name != "non-private"
        why = "no reason" if private else None
        out.append(group_privacy.Run(name, private, seen, None, tested, why, "no"))
    return out


def test_communities_become_groups_that_do_not_overlap():
    data = made.world(n=60)
    kind, community = group_privacy.groupings(config_of(), data)
    assert (kind.name, kind.names) == ("kind", ("a", "b"))
    assert community.names == ("none", "Zorbs", "Blips", "several")
    assert (community.of["train"] == -1).all(), "nobody's is known there"
    zorbs, blips = (data.groups["test"][name] for name in ("Zorbs", "Blips"))
    for of, z, b in zip(community.of["test"], zorbs, blips, strict=True):
        assert of == {(0, 0): 0, (1, 0): 1, (0, 1): 2, (1, 1): 3}[int(z), int(b)]


def test_data_that_know_nobody_have_no_groups():
    data = made.world(n=60)._replace(group_names={"length": ("short", "long")})
    assert group_privacy.groupings(config_of(), data) == ()


def test_figures_against_a_loop():
    data = made.world(n=400)
    config = config_of(fairness__attributes=("kind",))
    groupings, runs = group_privacy.groupings(config, data)[:1], runs_of(data, seeds=2)
    found = group_privacy.measure(config, data, groupings, runs)
    assert found["seeds"] == 2 and found["positive"] == "toxic"
    entry = found["attributes"][0]["runs"]["eps=1"]
    group, (plain, private) = data.groups["test"]["kind"], runs
    for g, row in enumerate(entry["groups"]):
        rows, tested = group == g, private.seen.tested
        assert row["value"] == pytest.approx(tested.correct[rows].mean())
        assert row["loss"].value == pytest.approx(tested.losses[rows].mean())
        lost = [
            np.mean(a.correct[rows]) - np.mean(b.correct[rows])
            for a, b in zip(plain.tested, private.tested, strict=True)
        ]
        assert entry["fall"].risks[g].value == pytest.approx(np.mean(lost))
        more = [
            np.mean(b.losses[rows]) - np.mean(a.losses[rows])
            for a, b in zip(plain.tested, private.tested, strict=True)
        ]
        assert entry["risk"].risks[g].value == pytest.approx(np.mean(more))
    assert isinstance(entry["risk"], excessive_risk.ExcessiveRisk)
    assert "risk" not in found["attributes"][0]["runs"]["non-private"]
    guess, label = private.seen.tested.guesses, data.test["label"]
    selected = [np.mean(guess[group == g] == 1) for g in (0, 1)]
    gap = entry["gaps"]["demographic parity difference"]
    assert gap.value == pytest.approx(abs(selected[0] - selected[1]), abs=1e-6)
    found_tpr = [np.mean(guess[(group == g) & (label == 1)] == 1) for g in (0, 1)]
    gap = entry["gaps"]["equal opportunity difference"]
    assert gap.value == pytest.approx(abs(found_tpr[0] - found_tpr[1]), abs=1e-6)


def test_attacks_by_group_are_those_on_its_examples():
    data = made.world(n=400)
    config = config_of(fairness__attributes=("kind",))
    groupings, runs = group_privacy.groupings(config, data)[:1], runs_of(data)
    inside, outside = describe.attacked(config, data)
    found = group_privacy.measure(config, data, groupings, runs)
    attack = found["attributes"][0]["runs"]["eps=1"].get("attack")
    if len(outside) < 100:  # texts repeat, and copies are no evidence
        assert attack is None
    rng = np.random.default_rng(1)
    strong = rng.normal(size=800)
    strong[3] = np.nan
    several = (np.arange(400), np.arange(400))
    run = runs[1]._replace(strong=strong)
    one = group_privacy._attacked(config, run, groupings[0], *several)
    assert one["kind"] == "shadow models"
    for g, row in enumerate(one["groups"]):
        ins = strong[:400][(data.groups["train"]["kind"] == g)]
        outs = strong[400:][(data.groups["valid"]["kind"] == g)]
        ins = ins[np.isfinite(ins)]
        assert (row["n_members"], row["n_nonmembers"]) == (ins.size, outs.size)
        area = metrics.auc(ins, outs, 1 - 0.05 / 2)
        assert row["auc"] == area
    limit = sorted(strong[400:])[-5]  # 4 of 400 false alarms, 1%
    caught = np.nansum(strong[:400] > limit)
    assert sum(r["tpr"]["value"] * r["n_members"] for r in one["groups"]) == (
        pytest.approx(caught)
    )


def test_losses_that_are_not_finite_are_counted_and_left_out():
    data = made.world(n=200)
    config = config_of(fairness__attributes=("kind",))
    plain, private = runs_of(data)
    losses = private.seen.tested.losses
    losses[:3] = np.inf
    found = group_privacy.measure(
        config, data, group_privacy.groupings(config, data)[:1], (plain, private)
    )
    entry = found["attributes"][0]["runs"]["eps=1"]
    assert entry["nonfinite"] == 3 and entry["risk"].unknown == 3
    assert np.isfinite(entry["risk"].gap.value) and entry["fall"].unknown == 0


def test_a_report_from_end_to_end(tmp_path, monkeypatch):
    data = made.world()
    monkeypatch.setattr(trust_report.build, "checked", lambda *_: data)
    config = config_of(
        report__seeds=2,
        report__epsilons=(1.0,),
        train__steps=40,
        privacy__check=False,
    )
    page = trust_report.run(config, tmp_path / "out").read_text()
    found = json.loads((tmp_path / "out" / "report.json").read_text())["fairness"]
    assert [one["name"] for one in found["attributes"]] == ["kind", "community"]
    kind = found["attributes"][0]
    assert set(kind["runs"]) == {"non-private", "eps=1"}
    bias = kind["runs"]["eps=1"]["nonprivate"]["clipping"]
    assert sum(row["n"] for row in bias["groups"]) == min(400, group_clipping.SAMPLE)
    assert kind["runs"]["eps=1"]["risk"]["seeds"] == 2
    told = kind["runs"]["eps=1"]["sensitivity"]
    assert told["status"]["accuracy"]["value"] > 0.9, "a word tells the kind"
    assert [row["n"] for row in told["groups"]] == [
        row["n"] for row in kind["runs"]["eps=1"]["groups"]
    ]
    assert (tmp_path / "out" / "seed-1" / "eps=1").is_dir()
    for said in (
        "Who pays for privacy?",
        "What privacy does, by kind",
        "By kind, under \u03b5 = 1 the accuracy of",
        "Excessive risk",
        "Clipping by kind (not private)",
        "no \u03b5 covers them",
        "Attacks by community were not measured",
        "Prediction sensitivity to community was not measured",
        "Sensitivity to words that tell kind",
        "Each run was trained from 2 seeds",
    ):
        assert said in page, said
