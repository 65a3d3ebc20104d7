"""Experiment `membership`: whole small runs, and the engine's time on Location-30."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.attacks import worlds
from trustml import config as config_lib
from trustml import parallel
from trustml.attacks import closed_form, designs, signals
from trustml.attacks import shadows as engine
from trustml.data import datasets
from trustml.experiments import build, leaks, membership, membership_page, shadows
from trustml.models import mlp


def make_config(tmp_path, **changes):
    file = tmp_path / "small.tsv"
    rows = [f"song {n} word{n % 7}\t{('music', 'weather')[n % 2]}" for n in range(60)]
    file.write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    cfg = config_lib.default()
    cfg.experiment = "membership"
    cfg.data.path = str(file)
    cfg.data.vocabulary_size = 32
    cfg.model.width, cfg.model.hidden = 4, ()
    cfg.optimizer.name, cfg.optimizer.learning_rate = "sgd", 0.5
    cfg.privacy.enabled = False
    cfg.train.steps, cfg.train.batch_size, cfg.train.num_devices = 6, 8, 1
    cfg.attack.num_models, cfg.attack.group_size = 4, 2
    for name, value in changes.items():
        cfg.update_from_flattened_dict({name.replace("__", "."): value})
    return config_lib.from_config_dict(cfg)


def test_a_run_from_end_to_end(tmp_path, capsys):
    config = make_config(tmp_path)
    path = membership.run(config, tmp_path / "out")
    assert path.name == "report.html" and "Student-t" in path.read_text()
    kept = shadows.load(tmp_path / "out" / "non-private" / "signals.npz")
    found = kept.signals
    assert kept.epsilon is None and kept.delta is None
    assert found.margin.shape == (4, 60, 1) and found.valid.all()
    assert np.all(found.member.sum(axis=0) == 2)
    assert found.pair.tolist() == [1, 0, 3, 2]
    assert np.all(found.group >= 0), "texts have groups of length"
    data = build.dataset(config)
    splits = (data.train, data.valid, data.test)
    labels = np.concatenate([split["label"] for split in splits])
    np.testing.assert_array_equal(found.label, labels)
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    (leak,) = numbers["leaks"]
    assert leak["n_models"] == 4 and set(leak["attacks"]) == {"2"}
    assert 0 <= leak["attacks"]["2"]["Student-t"]["auc"]["value"] <= 1
    assert set(leak["learned"]) == {"quantile regression", "Shokri"}
    for attack, found in leak["attacks"]["2"].items():
        # Of 4 models nobody is left to fix thresholds of attacks with references.
        alone = closed_form.THREATS[attack].references == "none"
        assert (found["balanced_accuracy"] is not None) == alone
    for found in leak["learned"].values():
        assert 0 <= found["balanced_accuracy"]["value"] <= 1
    assert leak["accuracy"]["n"] == 4 and leak["audited"] is None
    assert "Student-t with 2 models" in capsys.readouterr().out
    assert membership.run(config, tmp_path / "out") == path
    assert "finished already" in capsys.readouterr().out


def test_private_models_bring_their_epsilon(tmp_path, capsys):
    private = {
        "privacy__enabled": True,
        "privacy__noise_multiplier": 2.0,
        "privacy__noise_seed": 1,
        "privacy__accountant": "rdp",
        "privacy__method": "vmap",
    }
    config = make_config(tmp_path, **private)
    attack = membership.prepare(config, build.dataset(config))
    assert attack.plan.sampler.num_examples == 30 and attack.plan.steps == 6
    kept, _ = membership.collect(config, attack, tmp_path / "out", quiet=True)
    assert kept.epsilon == pytest.approx(attack.plan.epsilon())
    assert kept.delta == config.privacy.delta
    shadows.save(tmp_path / "s.npz", kept)
    assert shadows.load(tmp_path / "s.npz").epsilon == kept.epsilon
    plain = make_config(tmp_path)
    other = membership.prepare(plain, build.dataset(plain))
    assert other.fingerprint != attack.fingerprint and other.plan is None


def test_coins_of_their_own_audit_the_models(tmp_path):
    """A world without privacy under a promise of 0.1: the audit is above it."""
    rng = np.random.default_rng(0)
    member = rng.random((6, 2000)) < 0.5
    margin = (4.0 * member + rng.normal(size=member.shape)).astype(np.float32)
    found = signals.Signals(
        margin=margin[:, :, None],
        log_prob=-np.logaddexp(0, -margin)[:, :, None],
        member=member,
        pair=np.full(6, -1),
        label=np.zeros(2000, np.int32),
        group=np.full(2000, -1),
        valid=np.ones(2000, bool),
        fingerprint="",
    )

    def measure(found, epsilon):
        kept = shadows.Kept(found, epsilon, None if epsilon is None else 1e-5)
        return leaks.measure("eps", kept, {"label": found.label})

    leaky = measure(found, 0.1)
    assert 0.1 < leaky.audited.epsilon < leaky.audited.epsilon_ceiling
    assert leaky.audited.confidence == 0.95
    assert leaky.attacks[5]["Student-t"].balanced_accuracy.value > 0.9
    card = membership_page.cards([leaky])[1]
    assert any("ABOVE the promise" in point for point in card.points)
    noise = rng.normal(size=member.shape).astype(np.float32)[:, :, None]
    silent = measure(found._replace(margin=noise, log_prob=noise), 0.1)
    assert silent.audited.epsilon <= 0.1, "a false alarm in 5% of seeds at most"
    assert measure(found, None).audited is None
    pairs = found._replace(pair=np.arange(6) ^ 1, member=worlds.paired(6, 2000)[0])
    assert measure(pairs, 0.1).audited is None


def test_the_fingerprint_follows_data_settings_and_design(tmp_path):
    data = build.dataset(make_config(tmp_path))

    def mark(data=data, **changes):
        return membership.prepare(make_config(tmp_path, **changes), data).fingerprint

    marks = [mark(), mark(seed=1), mark(train__steps=7), mark(data._replace(digest=""))]
    assert len(set(marks)) == 4 and mark() == marks[0]


def test_a_batch_larger_than_a_training_set_is_refused(tmp_path):
    config = make_config(tmp_path, train__batch_size=31)
    with pytest.raises(ValueError, match="train.batch_size=31 must be at most the 30"):
        membership.prepare(config, build.dataset(config))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(1800)
def test_throughput_on_location30(data_dir):
    """Prints what a model costs by the engine, by a scan and by a loop.

    An MLP 446-64-30, Adam 1e-3, batches of 64, 30 epochs, the first 16 of 64 models
    in pairs. Times decide nothing here; interleaved, the shortest of 3 rounds.

        pytest -s -m slow tests/experiments/membership_test.py -k throughput
    """
    data = datasets.load("location30", data_dir=data_dir)
    columns, _ = membership.pool(data)
    task, optimizer = mlp.task(446, 30, hidden=(64,)), optax.adam(1e-3)
    design = designs.paired(64, len(columns["label"]), seed=0)
    own = engine.inputs(jax.random.key(0), design.index)
    steps, batch_size = 30 * 39, 64
    placed = jax.device_put(columns)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam breaks the strict one
        train = engine.trainer(
            task.init, task.loss, optimizer, steps=steps, batch_size=batch_size
        )
        alone, group = jax.jit(train), jax.vmap(train, (None, 0))
        devices = parallel.devices(2)
        spread = jax.jit(engine.over_devices(group, devices=devices))
        both, grouped = parallel.replicate(columns, devices), jax.jit(group)

        @jax.jit
        def step(params, state, batch):
            def mean(params):
                key = jax.random.key(0)  # without dropout nothing is drawn
                return jnp.mean(
                    jax.vmap(task.loss, (None, 0, None))(params, batch, key)
                )

            value, grads = jax.value_and_grad(mean)(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        def loop(m):
            random = np.random.default_rng(m)
            params = task.init(jax.random.key(m))
            state = optimizer.init(params)
            for number in range(steps):
                if number % 39 == 0:
                    order = random.permutation(design.index[m])
                rows = order[number % 39 * batch_size :][:batch_size]
                batch = {name: column[rows] for name, column in columns.items()}
                params, state, _ = step(params, state, batch)
            return params

        def by_groups(fn, columns, size):
            parts = [
                fn(columns, engine.take(own, some.models))
                for some in engine.groups(64, size, models=range(16))
            ]
            jax.block_until_ready(parts)
            return parts

        ways = {
            "engine, groups of 8": (16, lambda: by_groups(grouped, placed, 8)),
            "engine, 2 devices of 8": (16, lambda: by_groups(spread, both, 16)),
            "one scan after another": (
                8,
                lambda: [alone(placed, engine.take(own, m)) for m in range(8)],
            ),
            "a step at a time": (2, lambda: [loop(m) for m in range(2)]),
        }
        results = {
            name: jax.block_until_ready(run()) for name, (_, run) in ways.items()
        }
        times = {name: [] for name in ways}
        for _ in range(3):
            for name, (count, run) in ways.items():
                wall, cpu = time.perf_counter(), time.process_time()
                jax.block_until_ready(run())
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                times[name].append((wall / count, cpu / count))
    for name, found in times.items():
        wall, cpu = np.min(found, axis=0)
        print(f"{name:>24}: {wall:.3f} s a model, {cpu:.3f} s of CPU")
    first = results["engine, groups of 8"][0]
    assert grouped._cache_size() == spread._cache_size() == alone._cache_size() == 1
    apart = 0.0
    for m, params in enumerate(results["one scan after another"]):
        for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(params), strict=True):
            apart = max(apart, float(jnp.max(jnp.abs(x[m] - y))))
    # Adam divides by gradients near 0 and ReLUs flip, so rounding grows with the steps
    # in single weights; what is compared at 1e-5 is what models say after an epoch.
    print(f"weights of engine and scans differ by at most {apart:.1e} in the end")
    with jax.numpy_dtype_promotion("standard"):
        epoch = engine.trainer(
            task.init, task.loss, optimizer, steps=39, batch_size=batch_size
        )
        group = jax.jit(shadows.group_of(epoch, signals.of(task)))
        many, _ = group(placed, engine.take(own, np.arange(8)))
        for m in range(8):
            one, _ = group(placed, engine.take(own, np.array([m])))
            np.testing.assert_allclose(many[m], one[0], rtol=0, atol=1e-5)
