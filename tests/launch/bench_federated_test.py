"""The bench of federated rounds: a whole tiny run."""

import importlib.util

import pytest

from configs import bench_federated as bench_config
from launch import bench_federated


@pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="its digits are the data"
)
def test_a_tiny_run():
    config = bench_config.get_config("smoke")
    said = []
    entry = bench_federated.run_scene(
        "digits_mlp", config.scenes.digits_mlp, config, said.append
    )
    ways = entry["ways"]
    assert {"lanes_4", bench_federated.SCAN, bench_federated.LOOP} <= ways.keys()
    for found in ways.values():
        assert found["steps_per_second"] > 0
        assert found["repetitions"] == config.rounds
    assert 0.9 < entry["utilization"]["4"] <= 1
    assert any("utilization at L = 4" in line for line in said)
