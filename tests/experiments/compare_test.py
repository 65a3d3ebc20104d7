"""Experiment `compare`: a whole small run, and what its report says of it."""

import json

import pytest

from trustml import config as config_lib
from trustml.experiments import compare


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "small.tsv"
    # Tags too, which this model does not predict.
    rows = [
        f"song {n} word{n % 7}\t{('music', 'weather')[n % 2]}\tO B-number O"
        for n in range(240)
    ]
    file.write_text("text\tlabel\ttags\n" + "\n".join(rows) + "\n")
    cfg = config_lib.default()
    cfg.experiment = "compare"
    cfg.data.path = str(file)
    cfg.data.tokens_column, cfg.data.slots_column = "text", "tags"
    cfg.data.vocabulary_size = 64
    cfg.model.width, cfg.model.hidden = 4, ()
    cfg.optimizer.name = "sgd"
    cfg.privacy.noise_multiplier = 1.0
    cfg.privacy.noise_seed = 0
    cfg.privacy.accountant = "rdp"
    cfg.privacy.rule = "per_layer"
    cfg.privacy.group_size = 16
    cfg.privacy.group_clip_norm = 0.1
    cfg.train.steps, cfg.train.batch_size = 4, 64
    cfg.train.physical_batch_size = 16
    cfg.report.timing_rounds = 1
    return config_lib.from_config_dict(cfg)


def test_a_comparison_from_end_to_end(config, tmp_path, capsys):
    path = compare.run(config, tmp_path / "out")
    assert path.exists()
    runs = json.loads((tmp_path / "out" / "report.json").read_text())["runs"]
    plain, edp, exact = runs
    names = [run["name"] for run in runs]
    assert names == [compare.PLAIN, compare.EDP, compare.EXACT]
    assert not plain["private"] and edp["private"] and exact["private"]
    # One noise multiplier: what is clipped decides what it is worth.
    assert edp["epsilon_nominal"] == pytest.approx(exact["epsilon_spent"], rel=1e-6)
    assert edp["epsilon_spent"] > 2 * exact["epsilon_spent"]
    for run in runs:
        assert run["cost"]["epoch_seconds"] > 0
        assert "slot_f1" not in run["test"]
    assert plain["cost"]["ratios"]["epoch_seconds"] == 1
    said = capsys.readouterr().out
    assert "per-example loop" in said and "(nominal" in said
    assert compare.run(config, tmp_path / "out") == path
    assert "finished already" in capsys.readouterr().out


def test_the_exact_way_is_dp_sgd_of_the_same_noise(config):
    ways = compare.variants(config)
    assert ways[compare.EXACT].privacy.group_size == 0
    assert ways[compare.EXACT].privacy.l2_clip_norm == config.privacy.l2_clip_norm
    assert ways[compare.EDP].privacy.l2_clip_norm == config.privacy.group_clip_norm
    assert not ways[compare.PLAIN].privacy.enabled
