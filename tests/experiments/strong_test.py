"""The strong attack of the trust report: on planted signals, and within a report."""

import json

import numpy as np
import pytest

from tests.experiments.trust_report_test import _config, path  # noqa: F401
from trustml import config as config_lib
from trustml.attacks import designs, metrics, signals
from trustml.experiments import strong, trust_report


def planted(shift, *, models=8, examples=2000, seed=0):
    """Margins N(difficulty, 1), and `shift` more where the example was learnt."""
    rng = np.random.default_rng(seed)
    design = designs.paired(models, examples, seed=seed)
    hard = 3 * rng.normal(size=examples)
    inside = np.arange(examples) < examples // 2
    noise = rng.normal(size=(models + 1, examples))
    margin = hard + noise + shift * np.vstack([design.member, inside])
    margin = margin.astype(np.float32)[:, :, None]
    log_prob = -np.logaddexp(np.float32(0), -margin)
    label = np.zeros(examples, np.int32)
    known = signals.assemble(margin[:-1], log_prob[:-1], design, label)
    return known, log_prob[-1:], inside


def test_it_finds_members_that_the_loss_alone_does_not():
    known, log_prob, inside = planted(1.5)
    score = strong.of_signals(known, log_prob)
    found = metrics.auc(score[inside], score[~inside]).value
    alone = metrics.auc(log_prob[0, inside, 0], log_prob[0, ~inside, 0]).value
    # With difficulty known the AUC is Phi(1.5 / sqrt 2) = 0.86, and a little less with
    # 4 + 4 references; without, Phi(1.5 / sqrt 20) = 0.63. Standard errors near 0.01.
    assert found > 0.8 and alone < 0.68


def test_on_noise_it_finds_nothing():
    found = []
    for seed in range(8):
        known, log_prob, inside = planted(0.0, models=2 + 2 * (seed % 2), seed=seed)
        score = strong.of_signals(known, log_prob)
        found.append(metrics.auc(score[inside], score[~inside]).value)
    # AUC of 1,000 + 1,000 scores of one law: standard error 0.0129; of 8: 0.0046.
    assert abs(np.mean(found) - 0.5) < 4 * 0.0046


def test_an_example_that_is_not_finite_has_no_score():
    known, log_prob, _ = planted(1.0, examples=100)
    log_prob[0, 7] = np.nan
    score = strong.of_signals(known, log_prob)
    assert np.flatnonzero(np.isnan(score)).tolist() == [7]


def test_a_report_with_the_strong_attack_and_an_audit(path, tmp_path, capsys):  # noqa: F811
    tree = config_lib.to_dict(_config(path))
    tree["report"] |= {"epsilons": (8.0,), "shadow_models": 2, "audit_canaries": 400}
    tree["attack"] |= {"group_size": 2}
    config = config_lib.from_config_dict(tree)
    page = trust_report.run(config, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    plain, private = report["runs"]
    for run in (plain, private):
        attack = run["membership_strong"]
        assert attack["attack"] == "RMIA" and attack["references"] == "IN+OUT"
        assert attack["shadow_models"] == 2
        assert attack["n_members"] == run["membership"]["n_members"]
        assert run["membership"]["attack"] == "loss threshold"
    assert private["membership_strong"]["bound"] and "audit" not in plain
    audit = private["audit"]
    assert set(audit["bounds"]) == {
        "(ε, δ), fixed threshold",
        "(ε, δ), band",
        "one run, (ε, δ)",
    }
    assert audit["epsilon"] <= private["epsilon_spent"] and not audit["violated"]
    assert audit["confidence"] == pytest.approx(0.99)
    text = page.read_text()
    for words in (
        "audited: ε at least",
        "RMIA, 2 shadow models",
        "loss threshold",
    ):
        assert words in text
    assert "audited: at least" in capsys.readouterr().out


REFUSED = {
    "odd": ({"report": {"shadow_models": 3}}, "report.shadow_models=3 must be even"),
    "average": (
        {"report": {"shadow_models": 2}, "train": {"ema_decay": 0.9}},
        "train.ema_decay=0.9 is not done to the 2 shadow models",
    ),
    "sampler": (
        {
            "report": {"audit_canaries": 500},
            "privacy": {"sampler": "shuffled", "relation": "replace_special"},
        },
        "privacy.sampler='shuffled' does not go with report.audit_canaries=500",
    ),
    "few": ({"report": {"audit_canaries": 9}}, "report.audit_canaries=9 must be at"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_report_cannot_do_is_refused(path, name):  # noqa: F811
    changes, sentence = REFUSED[name]
    tree = config_lib.to_dict(_config(path))
    for section, fields in changes.items():
        tree[section] |= fields
    with pytest.raises(ValueError, match=sentence):
        config_lib.from_config_dict(tree)
