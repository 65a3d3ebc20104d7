"""Users as the unit of a run, and noise on a grid: small runs from end to end."""

import gzip
import json

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import trainer
from trustml import config as config_lib
from trustml import parallel, rng
from trustml.experiments import build, train, units
from trustml.experiments import step as step_lib
from trustml.privacy import users

USERS, K, M = 60, 4, 12


def rows_of_users():
    """(user, text, label); users have 1 to 7 rows."""
    generator = np.random.default_rng(0)
    for user in range(USERS):
        for _ in range(1 + user % 7):
            label = ("music", "weather")[generator.integers(2)]
            yield f"user {user}", f"{label} word{generator.integers(40)}", label


def settings(tmp_path, **privacy):
    file = tmp_path / "small.tsv"
    lines = ["\t".join(row) for row in rows_of_users()]
    file.write_text("user\ttext\tlabel\n" + "\n".join(lines) + "\n")
    cfg = config_lib.default()
    cfg.data.path = str(file)
    cfg.data.vocabulary_size, cfg.data.max_length = 64, 4
    cfg.model.width, cfg.model.hidden = 4, ()
    cfg.optimizer.name = "sgd"
    cfg.privacy.noise_multiplier = 1.0
    cfg.privacy.noise_seed = 0
    cfg.privacy.accountant = "rdp"
    cfg.train.steps, cfg.train.batch_size = 3, M
    cfg.train.physical_batch_size, cfg.train.num_devices = 8, 2
    for name, value in privacy.items():
        cfg.privacy[name] = value
    return cfg


def of_users(tmp_path):
    cfg = settings(tmp_path, unit="user", max_examples_per_user=K)
    cfg.data.user_column = "user"
    return cfg


def report_of(workdir):
    return json.loads((workdir / "report.json").read_text())


def epsilon_of(rate, multiplier, steps, delta=1e-5, **options):
    accountant = dp_accounting.rdp.RdpAccountant(**options)
    gaussian = dp_accounting.GaussianDpEvent(multiplier)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, gaussian), steps)
    return accountant.get_epsilon(delta)


def flat(tree):
    leaves = [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def by_users(loss, params, data, columns, drawn, clip):
    """The clipped sum over users, by hand: the mean gradient of each, in float64."""
    gradient, key = jax.jit(jax.grad(loss)), jax.random.key(0)
    ids, total, lengths = np.unique(data.user_ids), 0.0, []
    for user in drawn:
        own = np.flatnonzero(data.user_ids == ids[user])
        examples = [{n: x[i] for n, x in data.train.items()} for i in own]
        most = len(columns[users.MASK][user])
        if len(own) > most:  # those of the bundle, each of them the user's
            rows = columns["tokens"][user]
            kept = [np.all(x["tokens"] == rows, axis=1).any() for x in examples]
            assert sum(kept) >= len(np.unique(rows, axis=0))
            bundle = {n: x[user] for n, x in columns.items() if n != users.MASK}
            examples = [{n: x[i] for n, x in bundle.items()} for i in range(most)]
        mean = sum(flat(gradient(params, e, key)) for e in examples) / len(examples)
        lengths.append(np.linalg.norm(mean))
        total = total + min(1.0, clip / lengths[-1]) * mean
    return total, np.array(lengths)


def test_a_run_of_users_promises_for_users(tmp_path):
    config = config_lib.from_config_dict(of_users(tmp_path))
    train.run(config, tmp_path / "out")
    (run,) = report_of(tmp_path / "out")["runs"]
    data = build.dataset(config)
    number = len(np.unique(data.user_ids))
    assert number < USERS  # some are in the other splits
    assert run["privacy_unit"] == "one training user"
    assert run["epsilon_spent"] == pytest.approx(epsilon_of(M / number, 1.0, 3))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "one training user" in page
    limits = report_of(tmp_path / "out")["limits"]
    assert any(f"at most {K} examples of each user" in limit for limit in limits)


def test_without_privacy_every_user_counts_once_too(tmp_path):
    """Plain gradients, as in a trust report's baseline, are sums of users' means."""
    config = config_lib.from_config_dict(of_users(tmp_path)).without_privacy()
    data = build.dataset(config)
    task = build.task(config, data)
    ready = step_lib.prepare(config, data, task)
    assert ready.plan is None and ready.sampler.privacy_unit == "user"
    params, drawn = task.init(jax.random.key(0)), ready.sampler.draw(0)
    want, _ = by_users(task.loss, params, data, ready.columns, drawn, np.inf)
    (physical,) = ready.sampler.physical(0)
    rows = step_lib.rows_of(ready.columns, physical, ready.devices)
    state = step_lib.initial_state(params, optax.sgd(1.0), (), None)
    step = step_lib.make_step(
        step_lib.ordinary_sums(units.loss(config, task.loss)),
        None,
        optax.sgd(1.0),
        expected_batch_size=1.0,
        l2_clip_norm=1.0,
        selection=None,
        dropout_key=jax.random.key(1),
        devices=ready.devices,
        backend="shard_map",
    )
    after, _ = jax.jit(step)(parallel.replicate(state, ready.devices), rows, True)
    moved = flat(params) - flat(jax.device_get(after.params))
    assert np.linalg.norm(moved - want) <= 1e-5 * np.linalg.norm(want)


def test_bundles_are_what_a_step_draws(tmp_path):
    config = config_lib.from_config_dict(of_users(tmp_path))
    data = build.dataset(config)
    columns = units.columns(config, data)
    number = units.count(config, data)
    assert columns["tokens"].shape == (number, K, 4)
    sizes = np.unique(data.user_ids, return_counts=True)[1]
    used = np.minimum(sizes, K)
    np.testing.assert_array_equal(columns[users.MASK].sum(1), used)
    assert units.examples_each(columns) == pytest.approx(used.mean())
    ready = step_lib.prepare(config, data, build.task(config, data))
    assert ready.sampler.num_examples == number
    assert ready.sampler.privacy_unit == ready.clipper.privacy_unit == "user"


def test_rows_as_the_unit_are_left_alone(tmp_path):
    cfg = of_users(tmp_path)
    cfg.privacy.unit = "example"
    config = config_lib.from_config_dict(cfg)
    data = build.dataset(config)
    assert units.columns(config, data) is data.train
    assert units.count(config, data) == len(data.user_ids)
    assert units.examples_each(data.train) == 1.0


def test_data_that_do_not_know_their_users(tmp_path):
    config = config_lib.from_config_dict(of_users(tmp_path))
    data = build.dataset(config)._replace(user_ids=None)
    with pytest.raises(ValueError, match="does not say; set data.path and data.user_"):
        units.count(config, data)


def test_a_run_on_a_grid(tmp_path):
    """Epsilon is that of the noise, and all that is released lies on the grid."""
    cfg = settings(tmp_path, grid_bits=12, check=False)
    config = config_lib.from_config_dict(cfg)
    train.run(config, tmp_path / "out")
    (run,) = report_of(tmp_path / "out")["runs"]
    data = build.dataset(config)
    task = build.task(config, data)
    ready = step_lib.prepare(config, data, task)
    # Whole orders alone have a bound for samples.
    rate, orders = M / units.count(config, data), range(2, 65)
    want = epsilon_of(rate, 1.0, 3, orders=orders)
    assert want <= run["epsilon_spent"] <= want * 1.001
    assert run["privacy_unit"] == "one training example"
    limits = report_of(tmp_path / "out")["limits"]
    assert not any("floating-point sampling" in limit for limit in limits)
    trained = trainer.make(ready.clipper, ready.plan, devices=ready.devices)
    state = trained.start(task.init(jax.random.key(0)), rng.root(1))
    (physical,) = ready.sampler.physical(0)
    _, means = trained.release(state, ready.columns, physical)
    sums = M * flat(means)
    # 2^-12 of C / sqrt(d), rounded down to a power of two; M is a multiple of 3, hence
    # the rounding.
    spacing = 2.0 ** np.floor(np.log2(1 / np.sqrt(sums.size)) - 12)
    steps = sums / spacing
    assert np.abs(steps - np.rint(steps)).max() < 0.02


# --- users of real data ------------------------------------------------------------

PLAYS = ("hamlet", "macbeth", "much_ado", "othello")


@pytest.fixture
def plays(data_dir, tmp_path):
    """A few hundred speeches; whose they are is (play, speaker)."""
    rows = []
    with gzip.open(data_dir / "shakespeare" / "plays.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            if row["play"] in PLAYS and row["act"] == 1:
                speaker = f"{row['play']}: {row['speaker']}"
                text = {"text": row["text"], "label": row["play"]}
                rows.append(json.dumps(text | {"speaker": speaker}))
    assert 300 < len(rows) < 1500, len(rows)
    file = tmp_path / "plays.jsonl"
    file.write_text("\n".join(rows) + "\n")
    return file


@pytest.mark.data
def test_speakers_of_plays_as_users(plays, tmp_path):
    clip = 0.88  # between the norms of the users' gradients
    cfg = settings(tmp_path, unit="user", max_examples_per_user=8, l2_clip_norm=clip)
    cfg.privacy.check = False
    cfg.data.path, cfg.data.user_column = str(plays), "speaker"
    cfg.data.max_length, cfg.data.vocabulary_size = 16, 256
    config = config_lib.from_config_dict(cfg)
    data = build.dataset(config)
    task, whose = build.task(config, data), np.unique(data.user_ids)
    ready = step_lib.prepare(config, data, task)
    devices = parallel.devices(2)
    trained = trainer.make(ready.clipper, ready.plan, devices=devices)
    state = trained.start(task.init(jax.random.key(0)), rng.root(0))
    clipped = []
    for at in range(3):
        before, released = state, None
        for physical in ready.sampler.physical(at):
            state, released = trained.release(state, ready.columns, physical)
        nothing = jax.tree.map(jnp.zeros_like, released)
        noise, _ = ready.plan.mechanism.update(nothing, before.noise)
        params = jax.device_get(before.params)
        want, lengths = by_users(
            task.loss, params, data, ready.columns, ready.sampler.draw(at), clip
        )
        clipped += list(lengths > clip)
        got = M * flat(released) - flat(noise)
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)
    assert 0.2 < np.mean(clipped) < 0.8, "some users are clipped, and some are not"
    train.run(config, tmp_path / "out")
    (run,) = report_of(tmp_path / "out")["runs"]
    assert run["privacy_unit"] == "one training user"
    rate = M / len(whose)
    assert run["epsilon_spent"] == pytest.approx(epsilon_of(rate, 1.0, 3))
