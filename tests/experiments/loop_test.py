"""The training loop against DP-SGD written out by hand, on every layout of devices."""

import pathlib

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trustml import config as config_lib
from trustml import parallel, rng, specs
from trustml import task as task_lib
from trustml.data import batches, dataset
from trustml.experiments import build, loop
from trustml.experiments import step as step_lib
from trustml.models import mlp
from trustml.privacy import clipping, sampling

N, D = 40, 3
BAD = 7  # the row that holds NaN, in the data of `with_nan`


def make_data(with_nan=False) -> dataset.Dataset:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(N, D)).astype(np.float32)
    label = (features[:, 0] > 0).astype(np.int32)
    if with_nan:
        features[BAD, 1] = np.nan
    train = {"features": features, "label": label}
    few = {"features": np.ones((4, D), np.float32), "label": np.zeros(4, np.int32)}
    blank = {"vocab_size": 0, "feature_names": (), "texts": {}, "groups": {}}
    return dataset.Dataset(
        train, few, few, ("no", "yes"), (), None, name="made", source="here",
        licence="none", group_names={}, digest=f"made{with_nan}", **blank,
    )  # fmt: skip


def make_config(**changes) -> specs.RunConfig:
    cfg = config_lib.default()
    cfg.privacy.noise_multiplier = 0.5
    cfg.privacy.noise_seed = 3
    cfg.privacy.l2_clip_norm = 0.4
    cfg.privacy.check = False
    cfg.privacy.accountant = "rdp"
    cfg.optimizer.name = "momentum"
    cfg.optimizer.learning_rate = 0.5
    cfg.train.steps = 3
    cfg.train.batch_size = 12
    cfg.train.physical_batch_size = 4
    cfg.train.num_devices = 1
    for name, value in changes.items():
        cfg.update_from_flattened_dict({name.replace("__", "."): value})
    return config_lib.from_config_dict(cfg)


MLP = mlp.task(D, 2, hidden=(5,))


def by_hand(config, data, task, plan, params):
    """DP-SGD with momentum, one example at a time, as in Abadi et al. 2016."""
    root = rng.root(config.privacy.noise_seed)
    sampler = build.sampler(config, N, 1, root)
    state = plan.mechanism.init(root)
    velocity = jax.tree.map(jnp.zeros_like, params)
    grad = jax.jit(jax.grad(task.loss))
    bad = 0
    for step in range(config.train.steps):
        total = jax.tree.map(jnp.zeros_like, params)
        for i in sampler.draw(step):
            one = {name: column[i] for name, column in data.train.items()}
            if not np.all(np.isfinite(one["features"])):
                bad += 1
                continue
            g = grad(params, one, jax.random.key(0))
            norm = float(optax.tree.norm(g))
            factor = min(1.0, config.privacy.l2_clip_norm / norm)
            total = jax.tree.map(lambda t, x, f=factor: t + f * x, total, g)
        noisy, state = plan.mechanism.update(total, state)
        mean = jax.tree.map(lambda x: x / config.train.batch_size, noisy)
        velocity = jax.tree.map(lambda v, x: 0.9 * v + x, velocity, mean)
        rate = config.optimizer.learning_rate
        params = jax.tree.map(lambda p, v, r=rate: p - r * v, params, velocity)
    return params, bad


def fit(config, data, task, path) -> loop.Trained:
    return loop.fit(config, data, task, pathlib.Path(path), quiet=True)


def start(config, task):
    return task.init(rng.stream(jax.random.key(config.seed), "init"))


def assert_close(got, want, atol):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


@pytest.mark.parametrize("bands", [1, 2])
@pytest.mark.parametrize("with_nan", [False, True], ids=["finite", "one row is NaN"])
def test_equals_dp_sgd_by_hand(tmp_path, with_nan, bands):
    data, config = make_data(with_nan), make_config(privacy__bands=bands)
    trained = fit(config, data, MLP, tmp_path)
    params = start(config, MLP)
    want, bad = by_hand(config, data, MLP, trained.plan, params)
    assert_close(trained.params, want, 1e-6)
    moved = optax.tree.norm(optax.tree.sub(want, params))
    assert moved > 0.05, "a comparison at 1e-6 needs something that moved"
    assert (bad > 0) == with_nan
    assert trained.plan.sampler.bands == bands
    assert trained.rows[-1]["nonprivate/nonfinite"] == bad
    assert trained.rows[-1]["step"] == config.train.steps


LAYOUTS = [(2, "shard_map"), (4, "shard_map"), (2, "pmap"), (4, "pmap")]


def test_every_layout_of_devices_gives_the_same(tmp_path):
    data, linear = make_data(), mlp.task(D, 2, hidden=())
    want = fit(make_config(), data, linear, tmp_path / "1").params
    for count, backend in LAYOUTS:
        config = make_config(train__num_devices=count, train__backend=backend)
        got = fit(config, data, linear, tmp_path / f"{count}{backend}").params
        assert_close(got, want, 1e-5)


def test_frozen_parameters_do_not_move(tmp_path):
    config = make_config(privacy__trainable=("*head*",))
    trained = fit(config, make_data(), MLP, tmp_path)
    before = jax.tree_util.tree_leaves_with_path(start(config, MLP))
    after = jax.tree.leaves(trained.params)
    moved = {
        jax.tree_util.keystr(path): not np.array_equal(x, y)
        for (path, x), y in zip(before, after, strict=True)
    }
    assert any(moved.values()) and not all(moved.values())
    assert all(changed == ("head" in path) for path, changed in moved.items())


@pytest.mark.parametrize("private", [True, False])
def test_average_equals_a_loop(tmp_path, private):
    """On the private path and without; every value of d_t's minimum is taken."""
    decay, selection = 0.35, ("*head*",)
    config = make_config(
        train__ema_decay=decay,
        train__steps=6,
        privacy__trainable=selection,
        privacy__enabled=private,
    )
    data = make_data()
    ready = step_lib.prepare(config, data, MLP)
    state, step = ready.state, jax.jit(ready.step)
    want = start(config, MLP)
    rates = []
    for t in range(6):
        for physical in ready.sampler.physical(t):
            rows = step_lib.rows_of(data.train, physical, ready.devices)
            state, _ = step(state, rows, np.bool_(physical.last))
        rates.append(min(decay, (1 + t) / (10 + t)))
        want = jax.tree.map(
            lambda a, x, d=rates[-1]: d * a + (1 - d) * np.asarray(x),
            want,
            state.params,
        )
    assert decay in rates and rates[0] == 0.1 and len(set(rates)) > 3
    got = step_lib.trained(state, selection)
    assert_close(got, want, 1e-6)
    apart = optax.tree.norm(optax.tree.sub(want, state.params))
    assert apart > 0.02, "the average is not the last"
    assert_close(fit(config, data, MLP, tmp_path).params, got, 0)


def test_a_killed_run_keeps_its_average(tmp_path, monkeypatch):
    config = make_config(
        train__ema_decay=0.8,
        train__steps=5,
        train__log_every=1,
        train__checkpoint_every=3,
    )
    data = make_data()
    whole = fit(config, data, MLP, tmp_path / "whole")
    write = loop.writer_lib.Writer.write

    def dying(self, step, row):
        if step == 5:
            raise KeyboardInterrupt
        write(self, step, row)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.writer_lib.Writer, "write", dying)
        fit(config, data, MLP, tmp_path / "killed")
    resumed = fit(config, data, MLP, tmp_path / "killed")
    assert_close(resumed.params, whole.params, 0)
    assert resumed.rows == whole.rows
    last = [row.get("nonprivate/valid_accuracy_last") for row in whole.rows]
    assert last[-1] is not None and not any(last[:-1])


def test_adam_is_corrected_by_the_noise_of_the_plan(tmp_path):
    """Pure noise of one step: v^ - Phi is small, so what divides is the floor, 24 Phi.

    A draw beyond five standard deviations would pass it; of 1000 none is.
    """
    width = 1000
    config = make_config(
        optimizer__name="adam_bc", optimizer__variance_floor=24.0, train__steps=1
    )
    trained = fit(config, make_data(), _silent_task(width), tmp_path)
    noise = trained.plan.noise_stddev() / config.train.batch_size
    root = rng.root(config.privacy.noise_seed)
    zeros = {"w": jnp.zeros(width)}
    mechanism = trained.plan.mechanism
    drawn = mechanism.update(zeros, mechanism.init(root))[0]["w"]
    mean = np.asarray(drawn) / config.train.batch_size
    assert np.max(np.abs(mean)) < 5 * noise, "the floor holds throughout"
    want = -config.optimizer.learning_rate * mean / (np.sqrt(24.0) * noise)
    np.testing.assert_allclose(trained.params["w"], want, rtol=1e-4)


def _silent_task(width):
    """Its gradient is zero, so all that moves its parameters is the noise."""
    log_probs = jnp.log(jnp.array([0.5, 0.5], jnp.float32))
    return task_lib.Task(
        init=lambda key: {"w": jnp.zeros(width)},
        loss=lambda params, example, key: 0.0 * jnp.sum(params["w"]),
        predict=lambda params, example: log_probs,
        metrics={},
    )


def test_released_updates_carry_the_noise_of_the_plan(tmp_path):
    width = 40_000
    changes = {"optimizer__name": "sgd", "optimizer__learning_rate": 1.0}
    config = make_config(train__steps=2, train__checkpoint_every=1, **changes)
    trained = fit(config, make_data(), _silent_task(width), tmp_path)
    moved = np.asarray(trained.params["w"])
    plan = trained.plan
    assert plan.noise_stddev() == pytest.approx(0.5 * 0.4)
    # Two steps of independent noise; the estimate of a standard deviation from n draws
    # has relative error 1 / sqrt(2 n) = 0.35%, of which five are allowed.
    want = np.sqrt(2) * plan.noise_stddev() / config.train.batch_size
    assert np.std(moved) == pytest.approx(want, rel=5 / np.sqrt(2 * width))
    assert abs(np.mean(moved)) < 5 * want / np.sqrt(width)


def _linear_loss(params, example, key):
    """Its gradient is the features, whatever the parameters."""
    return jnp.vdot(params["w"], example["features"])


def test_one_compilation_for_every_realised_batch_size():
    """300 Poisson steps, some empty, some beyond the buffers, by one program."""
    data, clip, mean, slots = make_data(), 0.7, 2, 4
    clipper = clipping.clipped_grad(_linear_loss, l2_clip_norm=clip)
    # The buffers are laid out for a mean of 2 and hold 20 of the 40 examples; a rate of
    # one half overflows them every other step, and 1/20 leaves one step in eight empty.
    layout = {"physical_batch_size": slots, "shards": 1, "seed": 5}
    few = sampling.poisson(N, mean, sample_rate=0.05, **layout)
    many = sampling.poisson(N, mean, sample_rate=0.5, **layout)
    draws = [(sampler, step) for sampler in (few, many) for step in range(150)]
    devices, optimizer = parallel.devices(1), optax.sgd(1.0)
    made = step_lib.make_step(
        clipper,
        None,
        optimizer,
        expected_batch_size=mean,
        l2_clip_norm=clip,
        selection=None,
        dropout_key=jax.random.key(0),
        devices=devices,
        backend="shard_map",
    )
    state = step_lib.initial_state({"w": jnp.zeros(D)}, optimizer, (), None)
    state = parallel.replicate(state, devices)
    compilations, traces = [], []

    def note(event, seconds, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(details)

    def step(*args):
        traces.append(1)
        return made(*args)

    step = jax.jit(step, donate_argnums=0)
    jax.monitoring.register_event_duration_secs_listener(note)
    sizes, calls, sums = [], [], np.zeros(D)
    for number, (sampler, at) in enumerate(draws):
        ids = sampler.draw(at)
        sizes.append(len(ids))
        calls.append(0)
        for physical in sampler.physical(at):
            used = physical.trips * slots
            assert 0 <= used - physical.mask.sum() < slots, "padding"
            assert not physical.mask.reshape(-1)[used:].any()
            rows = step_lib.rows_of(data.train, physical, devices)
            state, counts = step(state, rows, np.bool_(physical.last))
            calls[-1] += 1
            if number == 0 and calls[0] == 1:
                assert compilations, "the listener hears compilations"
                compilations.clear()
        x = data.train["features"][ids].astype(np.float64)
        norms = np.linalg.norm(x, axis=1, keepdims=True)
        sums += np.sum(x * np.minimum(1, clip / norms), axis=0)
        assert int(counts.examples) == len(ids)
        assert int(state.step) == number + 1
    assert len(traces) == 1 and not compilations
    assert 0 in sizes and max(sizes) > 20 and len(set(sizes)) > 15
    assert set(calls) == {1, 2}
    np.testing.assert_allclose(state.params["w"], -sums / mean, rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_are_those_that_were_drawn():
    data, devices = make_data(), parallel.devices(2)
    sampler = build.sampler(make_config(train__num_devices=2), N, 2, rng.root(3))
    (physical,) = sampler.physical(0)
    batch, mask, ids, trips, closes = step_lib.rows_of(data.train, physical, devices)
    assert closes.shape == mask.shape[:2] and np.all(closes)
    assert batches.size(data.train) == N
    np.testing.assert_array_equal(np.sort(ids[np.asarray(mask)]), sampler.draw(0))
    chosen = np.asarray(batch["features"])[np.asarray(mask)]
    want = data.train["features"][physical.indices[physical.mask]]
    np.testing.assert_array_equal(chosen, want)
    assert not np.any(np.asarray(batch["features"])[~np.asarray(mask)])
    assert trips.shape == (2,)
