"""Checks of the whole private trainer, each a function of a seed that asserts.

They run the real sampler, clipper, loop, plan and accountant, and hold for every seed:
statistical bounds are six standard errors wide or p > 1e-7, so twenty seeds of all of
them fail by chance less than once in ten thousand. `mutants.py` breaks the trainer and
names the check that must notice.
"""

import math
import pathlib
import tempfile
from typing import Any, NamedTuple
from unittest import mock

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import special, stats

from tests.audit import gate
from trustml import config as config_lib
from trustml import parallel, rng
from trustml import task as task_lib
from trustml.audit import canaries
from trustml.data import dataset
from trustml.experiments import loop
from trustml.experiments import step as step_lib
from trustml.privacy import (
    accounting,
    clipping,
    correlated_noise,
    edp_sgd,
    noise,
    plan,
    quantile,
    sampling,
)

ADD = accounting.Relation.ADD_OR_REMOVE_ONE
SPECIAL = accounting.Relation.REPLACE_SPECIAL
REPLACE = accounting.Relation.REPLACE_ONE
DELTA = 1e-5
POSITIONS, INNER, OUTER, ROWS = 2, 8, 8, 11


class Trainer(NamedTuple):
    """The loop's step on a sampler, and what every call of it released."""

    plan: Any
    sampler: sampling.Sampler
    state: Any
    release: Any  # (state, Physical) -> (state, released mean)


def trainer(
    loss,
    params,
    columns,
    *,
    seed,
    mean,
    slots,
    noise_multiplier=None,
    sample_rate=None,
    num_devices=1,
    steps=6,
    clip=0.4,
    schedule=None,
) -> Trainer:
    """The pieces as a run joins them; no noise where noise_multiplier is None."""
    clipper = clipping.clipped_grad(loss, l2_clip_norm=clip)
    devices, size = parallel.devices(num_devices), len(next(iter(columns.values())))
    sampler = sampling.poisson(
        size,
        mean,
        sample_rate=sample_rate,
        physical_batch_size=slots,
        shards=num_devices,
        seed=seed,
    )
    made = plan.make(
        clipper,
        sampler,
        steps=steps,
        delta=DELTA,
        relation=ADD,
        noise_multiplier=noise_multiplier or 1.0,
        noise_schedule=schedule,
        accountant="rdp",
    )
    optimizer = canaries.recording(optax.sgd(0.1))
    mechanism = made.mechanism if noise_multiplier else None
    step = jax.jit(
        step_lib.make_step(
            clipper,
            mechanism,
            optimizer,
            expected_batch_size=made.expected_batch_size,
            l2_clip_norm=clip,
            selection=None,
            dropout_key=jax.random.key(1),
            devices=devices,
            backend="shard_map",
        )
    )
    noise_state = mechanism.init(rng.root(seed)) if mechanism else ()
    state = step_lib.initial_state(params, optimizer, noise_state, None)

    def release(state, physical):
        rows = step_lib.rows_of(columns, physical, devices)
        state, _ = step(state, rows, np.bool_(physical.last))
        return state, jax.tree.map(np.asarray, state.opt_state.released)

    return Trainer(made, sampler, parallel.replicate(state, devices), release)


def silent(params, example, key):
    """A loss without gradient: what is released is noise alone."""
    return sum(0.0 * jnp.sum(x) for x in jax.tree.leaves(params))


def _assert_stddev(sample, want):
    sample = np.asarray(sample, np.float64).ravel()
    # The estimate of a standard deviation from n draws has error 1 / sqrt(2 n).
    close = abs(np.std(sample) / want - 1) < 6 / math.sqrt(2 * sample.size)
    assert close, f"stddev {np.std(sample):.6g}, promised {want:.6g}"
    assert abs(np.mean(sample)) < 6 * want / math.sqrt(sample.size), "mean is not 0"


def _noise_of(num_devices, seed, width):
    """Released noise [steps, leaves, width] in units of the sum, and what it should be.

    Three microbatches a step, a batch that is empty, and a schedule.
    """
    leaves = {name: jnp.zeros(width) for name in ("a", "b")}
    columns = {"x": np.zeros((40, 1), np.float32)}
    relative = np.array([1.0, 0.5, 0.5, 2.0, 1.0, 1.0])
    t = trainer(
        silent,
        leaves,
        columns,
        seed=seed,
        mean=12,
        slots=4 // num_devices,
        noise_multiplier=0.7,
        num_devices=num_devices,
        schedule=relative,
    )
    state, rows = t.state, []
    for at in range(4):
        for physical in t.sampler.physical(at):
            if at == 2:
                nobody = np.zeros_like(physical.mask)
                physical = physical._replace(mask=nobody, trips=0)
            state, released = t.release(state, physical)
        rows.append([x * t.plan.expected_batch_size for x in released.values()])
    scales = [t.plan.noise_stddev(at) for at in range(4)]
    np.testing.assert_allclose(scales, 0.7 * 0.4 * relative[:4], rtol=1e-6)
    return np.array(rows, np.float64), np.array(scales)


def released_noise(seed):
    """Noise of the plan's scale, Gaussian, independent over leaves and steps."""
    width = 20_000
    noise_SLW, scales_S = _noise_of(1, seed, width)
    for leaves, scale in zip(noise_SLW, scales_S, strict=True):
        for leaf in leaves:
            _assert_stddev(leaf, scale)
    unit = (noise_SLW / scales_S[:, None, None]).reshape(-1, width)
    off = np.corrcoef(unit)[np.triu_indices(len(unit), 1)]
    assert np.abs(off).max() < 6 / math.sqrt(width), "correlated over leaves or steps"
    ordered = np.sort(unit.ravel())
    ranks = np.arange(1, ordered.size + 1) / ordered.size
    distance = np.max(np.abs(special.ndtr(ordered) - ranks))
    p = special.kolmogorov(math.sqrt(ordered.size) * distance)
    assert p > 1e-7, f"not Gaussian, p = {p:.1g}"
    # float32 draws 2**23 values: of 160,000 about 1% meet. bfloat16 draws 128.
    share = len(np.unique(ordered.astype(np.float32))) / ordered.size
    assert share > 0.9, f"only {share:.1%} of the draws differ"


def released_noise_on_two_devices(seed):
    """One draw for all devices: the scale is that of one device."""
    noise_SLW, scales_S = _noise_of(2, seed, 5_000)
    for leaves, scale in zip(noise_SLW, scales_S, strict=True):
        _assert_stddev(leaves, scale)


def tracked_norms(seed):
    """Measured noise of gradients and of bits together costs what the event says."""
    clipper = clipping.clipped_grad(silent, l2_clip_norm=2.0, rule="quantile")
    sampler = sampling.poisson(1000, 100, physical_batch_size=50, seed=seed)
    z = 8.0  # where the bits take most of the budget, so that it shows
    made = plan.make(
        clipper, sampler, steps=4, delta=DELTA, relation=ADD, noise_multiplier=z,
        accountant="rdp",
    )  # fmt: skip
    count = 8_000
    words = np.random.default_rng(seed).integers(0, 2**32, (count, 2, 2), np.uint32)
    roots = rng.Root(jnp.asarray(words), jnp.zeros(count, bool))
    states = quantile.QuantileState(
        noise.NoiseState(roots, jnp.zeros(count, jnp.int32)),
        jnp.broadcast_to(made.mechanism.clip_norms(made.mechanism.init(rng.root(0))),
                         (count, 1)),
    )  # fmt: skip
    zeros = {"w": jnp.zeros((count, 4))}
    noisy, after = jax.jit(jax.vmap(made.mechanism.update))(
        zeros, states, jnp.zeros((count, 1))
    )
    _assert_stddev(noisy["w"], made.noise_stddev())
    moves = np.log(np.asarray(after.clip_norms, np.float64) / 2.0).ravel()
    bit_stddev = np.std(moves / 0.2) * 100
    # 8,000 bits: 0.8% standard error of their stddev; their share of z^-2 is 0.64.
    total = (made.noise_stddev() / 2.0) ** -2 + (2 * bit_stddev) ** -2
    off = total / z**-2 - 1
    assert abs(off) < 6 * 2 * 0.64 * 0.008, f"the pair costs {off:+.0%}"
    charged = made.epsilon()
    sampled = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(z))
    assert math.isclose(charged, _rdp(ADD, sampled, 4), rel_tol=1e-6)


def bits(seed):
    """One example moves the sum of bits by at most 1/2, a masked one by nothing."""
    generator = np.random.default_rng(seed)
    norms = np.exp(generator.normal(size=6)).astype(np.float32)[:, None]
    blank = jnp.zeros(6)
    info = clipping.ClipInfo(blank, blank, jnp.zeros(6, bool), jnp.asarray(norms))
    within = jnp.ones(1)
    nobody = quantile.within(info, jnp.zeros(6, bool), within)
    assert float(nobody[0]) == 0.0, "masked examples count"
    for i in range(6):
        alone = quantile.within(info, jnp.arange(6) == i, within)
        assert abs(float(alone[0])) <= 0.5, "one example moves the sum by more"
    everyone = float(quantile.within(info, jnp.ones(6, bool), within)[0])
    assert everyone == np.sum(norms <= 1) - 3.0


def product_loss(params, example, key):
    """A dense layer with bias on T positions and an embedding, linear in all of them.

    With v = y + 0.1, gradients are x^T v, sum_t v, and u scattered at the ids, whatever
    the parameters; that of the all-zeros example is not zero. `keep` of an example is
    drawn from its key.
    """
    hidden = example["x"] @ params["dense"]["w"] + params["dense"]["b"][None, :]
    looked_up = params["table"][example["ids"]]
    draw = jax.random.bernoulli(key, 0.5).astype(jnp.float32)
    keep = 1.0 - example["noisy"] * draw
    return keep * (
        jnp.sum(hidden * (example["y"] + 0.1)) + jnp.sum(looked_up * example["u"])
    )


def product_params():
    return {
        "dense": {"w": jnp.zeros((INNER, OUTER)), "b": jnp.zeros(OUTER)},
        "table": jnp.zeros((ROWS, 3)),
    }


def product_batch(generator, size):
    def normal(*shape):
        return generator.normal(size=(size, *shape)).astype(np.float32)

    return {
        "x": normal(POSITIONS, INNER),
        "y": normal(POSITIONS, OUTER),
        "u": normal(POSITIONS, 3),
        "ids": generator.integers(0, ROWS, (size, POSITIONS)).astype(np.int32),
        "noisy": np.zeros(size, np.float32),
    }


def by_loop(batch, mask, clip, rule="flat"):
    """The clipped sum, one example at a time, in float64."""
    total = [
        np.zeros((ROWS, 3)),
        np.zeros(OUTER),
        np.zeros((INNER, OUTER)),
    ]  # table, b, w
    for i in np.flatnonzero(mask):
        one = {name: np.asarray(x[i], np.float64) for name, x in batch.items()}
        if not all(np.all(np.isfinite(x)) for x in one.values()):
            continue
        table = np.zeros((ROWS, 3))
        np.add.at(table, batch["ids"][i], one["u"])
        v = one["y"] + 0.1
        grads = [table, v.sum(0), one["x"].T @ v]
        norms = [np.sum(g**2) for g in grads]
        if rule == "per_layer":  # the dense layer and the table, with equal shares
            dense = math.sqrt(norms[1] + norms[2])
            lengths = [math.sqrt(norms[0]), dense, dense]
            limit = clip / math.sqrt(2)
        else:
            lengths, limit = [math.sqrt(sum(norms))] * 3, clip
        for t, g, n in zip(total, grads, lengths, strict=True):
            by = limit / (n + 0.01) if rule == "automatic" else min(1.0, limit / n)
            t += by * g
    return {"dense": {"w": total[2], "b": total[1]}, "table": total[0]}


def _assert_equal(got, want, why):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        error = np.max(np.abs(x - y)) / max(np.max(np.abs(y)), 1e-30)
        assert error < 1e-4, f"{why}: off by {error:.1e}"


def clipped_sum(seed):
    """The clipper against a NumPy loop; masked rows hold junk, one row holds NaN."""
    generator = np.random.default_rng(seed)
    batch = product_batch(generator, 7)
    batch["x"][5] = np.nan
    mask = np.array([True, True, False, True, True, True, False])
    for rule in ("flat", "per_layer", "automatic"):
        clip = 12.0  # below most of the norms, above some of them
        clipper = clipping.clipped_grad(product_loss, l2_clip_norm=clip, rule=rule)
        got, info = jax.jit(clipper)(product_params(), batch, mask, jax.random.key(0))
        _assert_equal(got, by_loop(batch, mask, clip, rule), rule)
        assert np.asarray(info.nonfinite_per_example).tolist() == [False] * 5 + [
            True,
            False,
        ]
        assert not np.any(np.asarray(info.norms_per_example)[[2, 6]])


def released_sum(seed):
    """The loop without noise, on two devices: the clipped sum / a public constant.

    Draws are small, empty, and beyond the buffers, each after the other.
    """
    generator = np.random.default_rng(seed)
    columns = product_batch(generator, 40)
    t = trainer(
        product_loss, product_params(), columns, seed=seed, mean=3, slots=2,
        sample_rate=0.3, num_devices=2, clip=12.0,
    )  # fmt: skip
    state = t.state
    everyone = np.arange(40)
    drawn = [t.sampler.draw(0), everyone[:1], everyone[:0], everyone, everyone[5:9]]
    for ids in drawn:
        capacity, slots = t.sampler.capacity, t.sampler.physical_batch_size
        for physical in sampling._lay_out(ids, capacity, slots, 2):
            state, released = t.release(state, physical)
        want = by_loop(columns, np.isin(everyone, ids), 12.0)
        want = jax.tree.map(lambda x: x / 3, want)
        if len(ids):
            _assert_equal(released, want, f"{len(ids)} examples")
        else:
            assert not any(np.any(x) for x in jax.tree.leaves(released))


def _distance(x, y):
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return math.sqrt(sum(float(np.sum((np.float64(a) - b) ** 2)) for a, b in pairs))


def _slots(batch, rows, size):
    """Rows of a batch in the first slots, padding after them; ids go along."""
    filled = np.zeros(size, np.int64)
    filled[: len(rows)] = rows
    mask = np.arange(size) < len(rows)
    return (
        {name: x[filled] for name, x in batch.items()},
        mask,
        filled.astype(np.uint32),
    )


def sensitivity(seed):
    """The triangle: D and D' differ in one adversarial member, the randomness does not.

    Members hold NaN, inf, 1e30, zeros, or a copy of another, and each has randomness of
    its own. Removing one lets the others move up a slot.
    """
    generator = np.random.default_rng(seed)
    size = 8
    batch = product_batch(generator, size)
    batch["noisy"] += 1.0
    for row, value in enumerate((np.nan, np.inf, 1e30, 0.0)):
        batch["x"][row] = value
    for x in batch.values():
        x[5] = x[4]
    # An opposite of row 6, so that replacing one by the other moves by 2 C.
    for name, x in batch.items():
        x[7] = {"y": -0.2 - x[6], "u": -x[6]}.get(name, x[6])
    batch["noisy"][6:] = 0.0
    for rule in ("flat", "per_layer"):
        clip = 0.3
        clipper = clipping.clipped_grad(product_loss, l2_clip_norm=clip, rule=rule)
        run = jax.jit(clipper.fn)

        def of(rows, run=run):
            slots = _slots(batch, rows, size)
            return run(product_params(), *slots[:2], jax.random.key(seed), slots[2])[0]

        whole = of(range(size))
        one = clipper.sensitivity(ADD) * (1 + 1e-4)
        for j in range(size):
            moved = _distance(whole, of([i for i in range(size) if i != j]))
            assert moved <= one, f"{rule}: member {j} moved the sum by {moved:.3g}"
        others = list(range(6))
        moved = _distance(of([*others, 6]), of([*others, 7]))
        most = clipper.sensitivity(REPLACE)
        assert moved <= most * (1 + 1e-4), f"{rule}: a replacement moved it {moved:.3g}"
        assert moved > 1.99 * clip, "the attack is meant to attain 2 C"


def gram_guard(seed):
    """Large activations whose cotangents cancel: Gram norms must not fall short."""
    generator = np.random.default_rng(seed)
    positions, features = 4, 32

    def loss(params, example, key):
        return jnp.sum((example["x"] @ params["w"]) * example["y"])

    params, clip = {"w": jnp.zeros((features, features))}, 1.0
    clipper = clipping.clipped_grad(loss, l2_clip_norm=clip)
    run = jax.jit(clipper.fn)
    for offset in (0.0, 300.0, 3000.0, 30000.0):
        x = generator.normal(size=(8, positions, features)) + offset
        y = generator.normal(size=(8, positions, features))
        y -= y.mean(axis=1, keepdims=True)
        batch = {"x": x.astype(np.float32), "y": y.astype(np.float32)}
        for i in range(8):
            sums, _ = run(params, batch, np.arange(8) == i, jax.random.key(0))
            # The sum's own rounding is not the clipper's: form it in float64.
            exact = batch["x"][i].astype(np.float64).T @ batch["y"][i]
            factor = np.vdot(sums["w"], exact) / np.vdot(exact, exact)
            length = factor * np.linalg.norm(exact)
            assert length <= clip * (1 + 1e-3), f"offset {offset}: length {length:.4g}"


def low_precision(seed):
    """Tokens of a bfloat16 model whose products cancel: still within the clip norm."""
    generator = np.random.default_rng(seed)

    def rounded(x):
        return np.array(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))

    def loss(params, example, key):
        hidden = example["x"].astype(jnp.bfloat16) @ params["w"].astype(jnp.bfloat16)
        return jnp.sum(hidden.astype(jnp.float32) * example["y"])

    # Three tokens whose products cancel exactly hide a fourth, short one: a, w - a and
    # w by 1, 1 and -1, on either side of the product.
    first = rounded(1 + generator.random(64))
    whole = rounded(first + rounded(0.1 + 0.2 * generator.random(64)))
    four = np.stack([first, whole - first, whole, rounded(np.full(64, 0.003))])
    signs = np.zeros((4, 64), np.float32)
    signs[(0, 1, 2, 3), (0, 0, 0, 1)] = (1.0, 1.0, -1.0, 1.0)
    params = {"w": jnp.zeros((64, 64))}
    for x, y in ((four, signs), (signs, four)):
        exact = np.linalg.norm(x.astype(np.float64).T @ y)
        for share in np.linspace(0.3, 0.95, 4):
            clip = float(share * exact)
            clipper = clipping.clipped_grad(loss, l2_clip_norm=clip)
            row, key = {"x": x[None], "y": y[None]}, jax.random.key(0)
            sums, _ = jax.jit(clipper)(params, row, np.ones(1, bool), key)
            length = float(jnp.linalg.norm(sums["w"])) / clip
            assert length <= 1 + 1e-4, f"one example reached {length:.3g} of its norm"


def _pld(relation, event, count):
    accountant = dp_accounting.pld.PLDAccountant(relation)
    return accountant.compose(event, count).get_epsilon(DELTA)


def _rdp(relation, event, count, delta=DELTA):
    accountant = dp_accounting.rdp.RdpAccountant(neighboring_relation=relation)
    return accountant.compose(event, count).get_epsilon(delta)


def _plan(sampler, relation, steps, accountant, clip=0.5, **options):
    clipper = clipping.clipped_grad(silent, l2_clip_norm=clip)
    return plan.make(
        clipper, sampler, steps=steps, delta=DELTA, relation=relation,
        accountant=accountant, **options,
    )  # fmt: skip


def events(seed):
    """Epsilon of every kind of plan, from the noise that it adds, by dp-accounting."""
    gaussian = dp_accounting.GaussianDpEvent
    sampled = dp_accounting.PoissonSampledDpEvent
    slots = {"physical_batch_size": 25, "seed": seed}
    poisson = sampling.poisson(2000, 100, **slots)

    made = _plan(poisson, ADD, 30, "rdp", noise_multiplier=0.8)
    z = made.noise_stddev() / 0.5
    for delta, step in ((DELTA, 30), (1e-3, 30), (DELTA, 11)):
        want = _rdp(ADD, sampled(0.05, gaussian(z)), step, delta)
        got = made.epsilon(delta=delta, step=step)
        assert math.isclose(got, want, rel_tol=1e-6), f"{got} is not {want}"
    want = _pld(ADD, sampled(0.05, gaussian(z)), 30)
    got = made.epsilon(accountant="pld")
    assert math.isclose(got, want, rel_tol=1e-4), f"by PLD {got} is not {want}"

    made = _plan(poisson, ADD, 30, "rdp", epsilon=3.0)
    want = _rdp(ADD, sampled(0.05, gaussian(made.noise_stddev() / 0.5)), 30)
    assert 2.99 < want <= 3.0, f"calibrated to 3, it costs {want}"

    relative = np.repeat([1.0, 0.6], 5)
    made = _plan(poisson, ADD, 10, "rdp", noise_multiplier=0.9, noise_schedule=relative)
    accountant = dp_accounting.rdp.RdpAccountant(neighboring_relation=ADD)
    for at in range(10):
        accountant.compose(sampled(0.05, gaussian(made.noise_stddev(at) / 0.5)))
    want, got = accountant.get_epsilon(DELTA), made.epsilon()
    assert math.isclose(got, want, rel_tol=1e-6), f"scheduled: {got} is not {want}"

    # Full batches, a record replaced: Gaussian DP in closed form, by PLD and by RDP.
    whole = sampling.poisson(100, 100, **slots)
    made = _plan(whole, REPLACE, 4, "pld", noise_multiplier=5.0)
    mu = 2 * math.sqrt(4) * 0.5 / made.noise_stddev()
    delta = accounting.gaussian_delta(made.epsilon(), mu)
    assert DELTA * 0.98 < delta <= DELTA * 1.001, f"replaced: delta {delta:.3g}"

    fixed = sampling.fixed_size(2000, 100, **slots)
    made = _plan(fixed, REPLACE, 10, "rdp", noise_multiplier=3.0)
    inner = gaussian(made.noise_stddev() / (2 * 0.5))
    event = dp_accounting.SampledWithoutReplacementDpEvent(2000, 100, inner)
    want, got = _rdp(REPLACE, event, 10), made.epsilon()
    assert math.isclose(got, want, rel_tol=1e-6), f"fixed size: {got} is not {want}"

    shuffled = sampling.shuffled(2000, 100, **slots)
    made = _plan(shuffled, SPECIAL, 50, "rdp", noise_multiplier=2.0)
    want = _rdp(SPECIAL, gaussian(made.noise_stddev() / 0.5), 3)  # epochs begun
    got = made.epsilon()
    assert math.isclose(got, want, rel_tol=1e-6), f"shuffled: {got} is not {want}"


def sampler_law(seed):
    """Poisson draws are coins: sizes, members, and steps that know of no other."""
    size, mean, steps = 100, 20, 1500
    sampler = sampling.poisson(size, mean, physical_batch_size=10, seed=seed)
    member = np.zeros((steps, size), bool)
    for step in range(steps):
        laid_out = sampler.physical(step)
        ids = np.concatenate([p.indices[p.mask] for p in laid_out])
        assert len(np.unique(ids)) == len(ids), "an example twice in one batch"
        member[step, ids] = True
    q = mean / size
    spread = math.sqrt(q * (1 - q))
    sizes = member.sum(1)
    assert abs(sizes.mean() - mean) < 6 * spread * math.sqrt(size / steps), "size"
    ratio = sizes.var() / (size * q * (1 - q))
    assert abs(ratio - 1) < 6 * math.sqrt(2 / steps), "sizes vary unlike coins"
    each = np.sum((member.sum(0) - steps * q) ** 2) / (steps * q * (1 - q))
    assert stats.chi2(size).sf(each) > 1e-7, "some are drawn more than others"
    agree = np.mean((member[1:] - q) * (member[:-1] - q)) / spread**2
    assert abs(agree) < 6 / math.sqrt(size * (steps - 1)), "steps resemble each other"
    # 4,950 pairs of examples; 6 standard errors.
    together = np.corrcoef(member.T)[np.triu_indices(size, 1)]
    assert np.abs(together).max() < 6 / math.sqrt(steps), "some are drawn together"
    shuffled = sampling.shuffled(60, 20, physical_batch_size=20, seed=seed)
    for epoch in range(2):
        seen = np.concatenate([shuffled.draw(3 * epoch + i) for i in range(3)])
        assert len(np.unique(seen)) == 60, "an epoch is not a permutation"
    first, second = (shuffled.draw(3 * epoch) for epoch in range(2))
    assert not np.array_equal(first, second), "epochs are permuted alike"


class _Killed(Exception):
    pass


def _resume_data():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(40, 3)).astype(np.float32)
    train = {"features": features, "label": (features[:, 0] > 0).astype(np.int32)}
    few = {"features": np.ones((4, 3), np.float32), "label": np.zeros(4, np.int32)}
    blank = {"vocab_size": 0, "feature_names": (), "texts": {}, "groups": {}}
    return dataset.Dataset(
        train, few, few, ("no", "yes"), (), None, name="made", source="here",
        licence="none", group_names={}, digest="made", **blank,
    )  # fmt: skip


def _logits(params, example):
    return jax.nn.log_softmax(example["features"] @ params["w"])


def resume(seed):
    """Killed and begun again, a run ends where it would have: its noise is its own.

    The second process draws a root of its own from the OS; that of the checkpoint must
    win, or steps would be repeated with other noise.
    """
    cfg = config_lib.default()
    cfg.privacy.noise_multiplier = 0.5
    cfg.privacy.check = False
    cfg.privacy.accountant = "rdp"
    cfg.optimizer.name = "momentum"
    cfg.train.steps, cfg.train.batch_size, cfg.train.physical_batch_size = 5, 12, 8
    cfg.train.num_devices, cfg.train.checkpoint_every, cfg.train.log_every = 1, 1, 1
    cfg.seed = seed
    config = config_lib.from_config_dict(cfg)
    task = task_lib.classification(lambda key: {"w": jnp.zeros((3, 2))}, _logits)
    kept = loop._metrics

    def killed_at_3(counts, plan, step):
        if step == 3:
            raise _Killed
        return kept(counts, plan, step)

    def fit(number, where, killed=False):
        root = rng.root(number)  # a new one: the loop gives its buffers away
        metrics = killed_at_3 if killed else kept
        with (
            mock.patch.object(rng, "root", lambda seed=None: root),
            mock.patch.object(loop, "_metrics", metrics),
        ):
            return loop.fit(config, _resume_data(), task, where, quiet=True).params

    with tempfile.TemporaryDirectory() as directory:
        where = pathlib.Path(directory)
        whole = fit(seed, where / "whole")
        try:
            fit(seed, where / "killed", killed=True)
        except _Killed:
            pass
        again = fit(seed + 10_000, where / "killed")
    same = np.array_equal(np.asarray(whole["w"]), np.asarray(again["w"]))
    assert same, "a resumed run differs from one that was never killed"


def audit(seed):
    """The audit gate, small: 3,000 canaries a side at epsilon = 4."""
    made = gate.make(epsilon=4.0, per_side=3_000)
    found = gate.audit(made, seed)
    promised = min(4.0, made.plan.epsilon())
    # A bound at 99.99% in place of 99%: no false alarm over many seeds.
    inside, outside = (found.units[:, of].sum(0) for of in
                       (found.included, ~found.included))  # fmt: skip
    bound = gate.lower_bounds.gaussian(
        inside,
        outside,
        threshold=1.5,
        delta=gate.DELTA,
        alpha=1e-4,
        independent_scores=True,
    )
    assert bound.epsilon <= promised, f"{bound.epsilon:.3g} above {promised:.3g}"
    assert bound.epsilon >= 0.5 * promised, f"only {bound.epsilon:.3g} of it leaks"
    assert found.variance_p > 1e-7, f"variance of canaries out: {found.variance_p:.1g}"


def micro_batches(seed):
    """eDP-SGD: what one example does to its micro-batch, and the event it pays with."""
    size, norm = 4, 0.5
    clipper = edp_sgd.clipped_grad(
        lambda params, example, key: jnp.dot(params["w"], example["x"]),
        l2_clip_norm=norm,
        group_size=size,
        rule="flat",
    )
    rows = np.random.default_rng(seed).normal(size=(400, size, 3)) * 10.0
    rows[::2, :-1], rows[::2, -1] = 1.0, -1e4  # the worst: one against all others
    params, key = {"w": jnp.zeros(3)}, jax.random.key(seed)

    @jax.jit
    @jax.vmap
    def moved(x):
        def closed(mask):
            sums, _ = clipper({"w": params["w"]}, {"x": x}, mask, key)
            return clipper.close(sums)[0]["w"]

        every = jnp.ones(size, bool)
        return jnp.linalg.norm(closed(every) - closed(every.at[-1].set(False)))

    with jax.debug_key_reuse(False):
        far = float(jnp.max(moved(jnp.asarray(rows, jnp.float32))))
    promised = clipper.sensitivity(ADD)
    assert far <= promised * (1 + 1e-4), f"moved by {far:.4g}, promised {promised:.4g}"
    assert far >= 0.99 * promised, f"moved by {far:.4g} only of {promised:.4g}"
    sampler = edp_sgd.micro_batches(
        2000, 20, group_size=size, physical_batch_size=4, seed=seed
    )
    made = plan.make(
        clipper,
        sampler,
        steps=100,
        delta=DELTA,
        relation=ADD,
        noise_multiplier=1.5,
        accountant="rdp",
    )
    direct = dp_accounting.rdp.RdpAccountant()
    gaussian = dp_accounting.GaussianDpEvent(1.5 / 2)
    direct.compose(dp_accounting.PoissonSampledDpEvent(0.01, gaussian), 100)
    same = math.isclose(made.epsilon(), direct.get_epsilon(DELTA), rel_tol=1e-6)
    assert same, "epsilon of eDP-SGD is not that of its event"
    (physical,) = sampler.physical(seed)
    drawn = np.sort(physical.indices[physical.mask])
    assert np.array_equal(drawn, sampler.draw(seed)), "slots lose or repeat examples"


def correlated(seed):
    """BandMF: T Y is white noise of the promised scale; batches keep b steps apart."""
    bands, width, z, clip = 3, 20_000, 1.5, 0.4
    clipper = clipping.clipped_grad(silent, l2_clip_norm=clip)
    params, strategy = {"w": jnp.zeros(width)}, correlated_noise.optimize(9, bands)
    sampler = sampling.cyclic_poisson(
        60, 6, bands=bands, physical_batch_size=8, seed=seed
    )
    made = plan.make(
        clipper,
        sampler,
        steps=9,
        delta=DELTA,
        relation=ADD,
        noise_multiplier=z,
        accountant="rdp",
        params=params,
        strategy=strategy,
    )
    state, released = made.mechanism.init(rng.root(seed)), []
    for _ in range(9):
        noisy, state = made.mechanism.update(params, state)
        released.append(np.asarray(noisy["w"], np.float64))
    c = strategy.coefficients
    white = [
        sum(c[k] * released[t - k] for k in range(min(bands, t + 1))) for t in range(9)
    ]
    for z_t in white:
        _assert_stddev(z_t, z * clip * math.sqrt(sum(x * x for x in c)))
    between = np.corrcoef(np.stack(white))[np.triu_indices(9, 1)]
    assert np.abs(between).max() < 6 / math.sqrt(width), "T Y is correlated"
    for start in range(6):
        near = np.concatenate([sampler.draw(start + k) for k in range(bands)])
        assert len(set(near.tolist())) == len(near), "an example within b steps again"
    direct = dp_accounting.rdp.RdpAccountant()
    gaussian = dp_accounting.GaussianDpEvent(z)
    direct.compose(dp_accounting.PoissonSampledDpEvent(0.3, gaussian), 3)
    same = math.isclose(made.epsilon(), direct.get_epsilon(DELTA), rel_tol=1e-6)
    assert same, "epsilon of BandMF is not that of its event"


def secret_roots(seed):
    """128 bits of the OS: no word twice in 50 roots (chance 1 in 200,000)."""
    del seed
    words = np.concatenate([np.asarray(rng.root().words).ravel() for _ in range(50)])
    assert len(set(words.tolist())) == words.size, "words of secret roots repeat"
    assert bool(rng.root().secret) and not bool(rng.root(0).secret)
    seeds = [sampling.poisson(9, 3, physical_batch_size=3).seed for _ in range(20)]
    assert max(seeds) >= 2**120, "sampling seeds are short"  # else 256**-20


ALL = {
    check.__name__: check
    for check in (
        released_noise,
        released_noise_on_two_devices,
        tracked_norms,
        bits,
        clipped_sum,
        released_sum,
        sensitivity,
        gram_guard,
        low_precision,
        events,
        sampler_law,
        resume,
        audit,
        micro_batches,
        correlated,
        secret_roots,
    )
}
