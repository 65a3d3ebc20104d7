"""The bench: costs read from the compiler, and a whole tiny run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import bench_dp_step
from launch import bench, hlo_cost


def product_flops(fn, *args):
    return hlo_cost.of(jax.jit(fn).lower(*args).compile())["product_flops"]


def test_products_are_counted_with_their_loops():
    x, w = np.ones((32, 64), np.float32), np.ones((6, 64, 48), np.float32)

    def scanned(x, w):
        return jax.lax.scan(lambda s, w: (s + jnp.sum(jnp.tanh(x @ w)), None), 0.0, w)[
            0
        ]

    assert product_flops(scanned, x, w) == 6 * 2 * 32 * 64 * 48
    image, kernel = np.ones((4, 8, 7, 3), np.float32), np.ones((3, 2, 3, 5), np.float32)
    dims = ("NHWC", "HWIO", "NHWC")

    def conv(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=dims
        )

    assert product_flops(conv, image, kernel) == 2 * (4 * 8 * 7 * 5) * (3 * 2 * 3)


def test_a_tiny_run(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "has_peer", lambda: False)
    config = bench_dp_step.get_config("smoke")
    config.rounds = 2
    spec = config.models.mlp_tiny
    said = []
    entry = bench.run_model("mlp_tiny", spec, config, said.append)
    ratios = entry["compiler"]["ratio"]
    assert ratios["non_private"] == dict.fromkeys(ratios["non_private"], 1.0)
    assert ratios["book_keeping"]["product_flops"] < 1.5
    assert entry["materialized_leaves"] == 0
    wall = entry["wall_clock"]
    for name in ("non_private", "book_keeping", "vmap"):
        assert wall[name]["rounds"] == 2
        assert 0 < wall[name]["min_seconds"] <= wall[name]["median_seconds"]
    machine = {"jax": "", "backend": "", "cores": 1, "machine": "", "peer": False}
    report = {"machine": machine, "models": {"mlp_tiny": entry}}
    bench.write(tmp_path, report)
    assert json.loads((tmp_path / "bench.json").read_text())["models"]
    table = (tmp_path / "bench.md").read_text()
    assert table.count("| mlp_tiny | book_keeping |") == 2
    assert "not installed" in table


@pytest.mark.filterwarnings("ignore")  # the peer's
def test_methods_make_the_same_step_when_nothing_is_clipped():
    config = bench_dp_step.get_config("smoke")
    config.l2_clip_norm = 1e6
    spec = config.models.mlp_tiny
    task, batch = bench.build(spec, 0)
    params, key = task.init(jax.random.key(0)), jax.random.key(1)
    found = bench.steps(task, spec.batch_size, config)
    want = found["non_private"](params, batch, key)
    for name in ("book_keeping", "vmap", "vmap@2", "jax_privacy@none"):
        if name in found:
            # The peer needs implicit promotion.
            with jax.numpy_dtype_promotion("standard"):
                got = jax.jit(found[name])(params, batch, key)
            for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_full_config_builds_every_model():
    config = bench_dp_step.get_config()
    for name, spec in config.models.items():
        if "L6" in name and "remat" not in name:
            continue  # larger relatives of others
        task, batch = bench.build(spec, 0)
        example = jax.tree.map(lambda x: x[0], batch)
        key = jax.random.key(0)
        params = jax.eval_shape(task.init, key)
        assert jax.eval_shape(task.loss, params, example, key).shape == ()
