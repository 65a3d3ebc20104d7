import json

import pytest

from trustml import config as config_lib
from trustml.experiments import build, trust_report


def _config(path, **baseline):
    cfg = config_lib.default()
    cfg.experiment = "trust_report"
    cfg.data.path = str(path)
    cfg.data.vocabulary_size = 64
    cfg.model.width = 8
    cfg.model.hidden = ()
    cfg.optimizer.name = "sgd"
    cfg.train.steps = 6
    cfg.train.batch_size = 32
    cfg.train.physical_batch_size = 16
    cfg.train.eval_every = 3
    cfg.privacy.noise_seed = 0
    cfg.privacy.delta = 1e-3
    cfg.report.epsilons = (1.0, 8.0)
    for field, value in baseline.items():
        cfg.baseline[field] = value
    return config_lib.from_config_dict(cfg)


@pytest.fixture
def path(tmp_path):
    rows = [f"word{n % 7} tail{n}\t{'ab'[n % 7 < 3]}" for n in range(300)]
    file = tmp_path / "mine.tsv"
    file.write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    return file


def test_variants_come_without_privacy_first_and_then_by_budget(path):
    made = trust_report.variants(_config(path))
    assert [v.privacy.enabled for v in made] == [False, True, True]
    assert [v.privacy.epsilon for v in made] == [None, 8.0, 1.0]
    assert len({(v.train, v.model, v.optimizer) for v in made}) == 1


def test_only_the_run_without_privacy_takes_the_settings_of_the_baseline(path):
    own = {"learning_rate": 0.5, "steps": 9, "batch_size": 8, "dropout": 0.25}
    plain, *private = trust_report.variants(_config(path, **own))
    assert plain.optimizer.learning_rate == 0.5
    assert (plain.train.steps, plain.train.batch_size) == (9, 8)
    buffers = [build.physical_batch_size(v, 1) for v in (plain, *private)]
    assert buffers == [8, 16, 16]
    assert plain.model.dropout == 0.25
    same = trust_report.variants(_config(path))[1:]
    parts = [(v.train, v.model, v.optimizer, v.privacy) for v in private]
    assert parts == [(v.train, v.model, v.optimizer, v.privacy) for v in same]


def test_a_baseline_with_more_than_the_data_is_refused(path, tmp_path):
    config = _config(path, batch_size=10_000)
    with pytest.raises(ValueError, match="baseline.batch_size=10000 must be at most"):
        trust_report.run(config, tmp_path / "run")


@pytest.mark.slow
def test_report_of_a_baseline_with_its_own_settings(path, tmp_path):
    config = _config(path, steps=9, batch_size=16, dropout=0.25)
    page = trust_report.run(config, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [run["name"] for run in report["runs"]] == ["non-private", "eps=8", "eps=1"]
    assert [run["steps"] for run in report["runs"]] == [9, 6, 6]
    assert [run["expected_batch_size"] for run in report["runs"]] == [16, 32, 32]
    # The price is taken at the settings of the private runs, whose buffers are larger.
    plain, private = (run["cost"] for run in report["runs"][:2])
    assert plain["seconds_per_step"] > 0 and private["flops"] > plain["flops"] > 0
    text = page.read_text()
    assert "steps 9, batch size 16, dropout 0.25" in text
    # Made again from what is on the disk, as after a kill at the last moment.
    page.unlink()
    trust_report.run(config, tmp_path / "run")
    again = json.loads((tmp_path / "run" / "report.json").read_text())
    for old, new in zip(report["runs"][1:], again["runs"][1:], strict=True):
        assert new["cost"] == old["cost"] and new["test"] == old["test"]
    before = page.stat().st_mtime_ns
    assert trust_report.run(config, tmp_path / "run") == page
    assert page.stat().st_mtime_ns == before
