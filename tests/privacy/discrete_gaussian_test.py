"""Discrete Gaussian noise: its law, its grid, its resuming, its price and its plan."""

import math

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting import pld, rdp
from scipy import special, stats

from trustml import rng
from trustml.privacy import (
    accounting,
    clipping,
    correlated_noise,
    discrete_gaussian,
    plan,
    sampling,
    schedules,
)

Relation = dp_accounting.NeighboringRelation
ADD, ONE, SPECIAL = (
    Relation.ADD_OR_REMOVE_ONE,
    Relation.REPLACE_ONE,
    Relation.REPLACE_SPECIAL,
)
Event = discrete_gaussian.DiscreteGaussianDpEvent


def numbers(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def law(scale, reach=12):
    """Values and probabilities, out to `reach` scales."""
    values = np.arange(-reach * scale - 1, reach * scale + 2)
    weights = np.exp(-(values**2) / (2 * scale**2))
    return values, weights / weights.sum()


# --- the law -----------------------------------------------------------------------


def chi_squared_p(drawn, scale):
    """Of draws against the law: every integer a cell of its own, or 60 wide ones."""
    values, weights = law(scale)
    edges = np.arange(-3 * scale, 3 * scale)
    if scale > 10:
        edges = values[np.searchsorted(np.cumsum(weights), np.arange(1, 60) / 60)]
    found = np.bincount(np.searchsorted(edges, drawn), minlength=len(edges) + 1)
    expected = np.bincount(np.searchsorted(edges, values), weights=weights)
    assert len(expected) > 2 and len(drawn) * expected.min() > 20
    return stats.chisquare(found, len(drawn) * expected).pvalue


@pytest.mark.parametrize("scale", [1, 2, 3, 10, 1000, 99_991])
def test_draws_follow_the_law(scale):
    drawn = discrete_gaussian.sample(numbers(scale), scale, 300_000)
    assert drawn.dtype == np.int64
    assert chi_squared_p(drawn, scale) > 1e-3


def test_the_law_test_notices_a_rounded_continuous_gaussian_and_a_wrong_scale():
    rounded = np.rint(numbers(2).normal(0, 1, 300_000)).astype(int)
    assert chi_squared_p(rounded, 1) < 1e-6
    wider = discrete_gaussian.sample(numbers(3), 101, 300_000)
    assert chi_squared_p(wider, 100) < 1e-3


def test_the_widest_noise_has_the_law_of_a_gaussian():
    # Two in a million apart there: int64 arithmetic holds out.
    scale = 1 << 28
    drawn = discrete_gaussian.sample(numbers(4), scale, 300_000) / scale
    assert stats.kstest(drawn, special.ndtr).pvalue > 1e-3
    assert np.abs(drawn).max() > 4
    low_bits = discrete_gaussian.sample(numbers(5), scale, 100_000) % 64
    assert stats.chisquare(np.bincount(low_bits, minlength=64)).pvalue > 1e-3


@pytest.mark.parametrize("numerator,denominator", [(0, 7), (1, 7), (6, 7), (7, 7)])
def test_coins(numerator, denominator):
    size, chance = 200_000, math.exp(-numerator / denominator)
    given = np.full(size, numerator)
    heads = discrete_gaussian._coins(numbers(6), given, denominator).sum()
    assert abs(heads - size * chance) <= 4 * math.sqrt(size * chance * (1 - chance))
    times = np.repeat([0, 1, 3], size // 2)
    many = discrete_gaussian._repeated(
        numbers(7), np.full(len(times), numerator), denominator, times
    )
    for count in (0, 1, 3):
        heads, of = many[times == count].sum(), size // 2
        error = 4 * math.sqrt(of * chance**count * (1 - chance**count))
        assert abs(heads - of * chance**count) <= error


def test_any_number_of_draws_and_no_two_calls_alike():
    generator = numbers(8)
    sizes = [0, 1, 2, 17, 1000]
    drawn = [discrete_gaussian.sample(generator, 5, size) for size in sizes]
    assert [len(x) for x in drawn] == sizes
    again = discrete_gaussian.sample(generator, 5, 1000)
    assert not np.array_equal(drawn[-1], again)


# --- the grid ----------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 12, 20])
@pytest.mark.parametrize("size", [1, 77, 10**6])
def test_the_grid_inflates_the_sensitivity_by_no_more_than_it_says(size, bits):
    grid = discrete_gaussian.grid(1.7, 0.3, size, bits=bits)
    assert math.log2(grid.spacing).is_integer()
    ratio = grid.sensitivity * grid.spacing / 0.3
    assert 1 + 2.0 ** -(bits + 1) <= ratio <= 1 + 2.0**-bits
    assert 1.7 <= grid.noise_stddev < 1.7 + grid.spacing
    assert grid.noise_multiplier == grid.scale / grid.sensitivity


def rounded(sums, grid):
    """What an update rounds `sums` to, by taking its own noise away again."""
    mechanism = discrete_gaussian.mechanism(grid)
    state = mechanism.init(rng.root(0))
    size = len(sums)
    noisy, _ = mechanism.update(jnp.asarray(sums, jnp.float32), state)
    alone, _ = mechanism.update(jnp.zeros(size, jnp.float32), state)
    return (np.asarray(noisy, float) - np.asarray(alone, float)) / grid.spacing


def test_rounded_neighbours_are_as_near_as_accounted_and_no_nearer():
    size, generator = 400, np.random.default_rng(0)
    grid = discrete_gaussian.grid(1.0, 1.0, size, bits=1)
    worst = 0.0
    for trial in range(10):
        step = generator.standard_normal(size)
        if trial % 2:
            step = np.sign(step)  # every coordinate the same way over a midpoint
        step /= np.linalg.norm(step)
        base = grid.spacing * (generator.integers(-9, 9, size) + 0.5)
        base = np.float32(base - np.sign(step) * grid.spacing * 1e-3)
        near = rounded(base, grid)
        assert np.abs(near - base / grid.spacing).max() <= 0.5
        moved = rounded(np.float32(base + step), grid) - near
        worst = max(worst, np.linalg.norm(moved) / grid.sensitivity)
        assert np.all(moved == np.rint(moved))
    assert 0.9 < worst <= 1 + 1e-6
    # Without what rounding adds it would not have been covered.
    assert worst * grid.sensitivity * grid.spacing > 1.2


def test_updates_round_and_add_noise_of_the_scale():
    grid = discrete_gaussian.grid(0.5, 1.0, 200_003, bits=4)
    mechanism = discrete_gaussian.mechanism(grid)
    state = mechanism.init(rng.root(3))
    sums = {
        "frozen": None,
        "w": jnp.linspace(-3, 3, 200_000, dtype=jnp.float32).reshape(400, 500),
        "b": jnp.zeros(3, jnp.float32),
    }
    noisy, after = jax.jit(mechanism.update)(sums, state)
    assert noisy["frozen"] is None and noisy["w"].dtype == jnp.float32
    assert int(after.step) == 1 and int(state.step) == 0
    steps = np.asarray(noisy["w"], float) / grid.spacing
    np.testing.assert_array_equal(steps, np.rint(steps))
    drawn = steps - np.rint(np.asarray(sums["w"], float) / grid.spacing)
    assert chi_squared_p(drawn.ravel(), grid.scale) > 1e-3
    assert np.std(drawn * grid.spacing) == pytest.approx(0.5, rel=0.01)
    assert mechanism.clip_norms(state) is None


def test_noise_differs_by_step_leaf_and_root_and_repeats_on_resuming():
    mechanism = discrete_gaussian.mechanism(discrete_gaussian.grid(1.0, 1.0, 100))
    update = jax.jit(mechanism.update)
    zeros = {"a": jnp.zeros(50), "b": jnp.zeros(50)}
    rows, states = [], [mechanism.init(rng.root(1))]
    for _ in range(3):
        noisy, state = update(zeros, states[-1])
        states.append(state)
        rows += [np.asarray(noisy["a"]), np.asarray(noisy["b"])]
    other, _ = update(zeros, mechanism.init(rng.root(2)))
    rows += [np.asarray(other["a"])]
    assert len({row.tobytes() for row in rows}) == 7
    alone, _ = mechanism.update({"b": jnp.zeros(50)}, states[2])
    np.testing.assert_array_equal(alone["b"], rows[5])
    assert update._cache_size() == 1
    # All 128 bits of the root are the generator's key.
    words = np.asarray(states[0].root.words)
    keys = [words] + [
        words ^ np.uint32(np.eye(4, dtype=int)[i].reshape(2, 2)) for i in range(4)
    ]
    draws = [discrete_gaussian._generator("a", key, 0).integers(2**63) for key in keys]
    assert len(set(draws)) == 5


@pytest.mark.parametrize("devices", [2, 4])
def test_noise_is_bit_equal_on_several_devices(devices):
    mechanism = discrete_gaussian.mechanism(discrete_gaussian.grid(1.0, 1.0, 64))
    state, sums = mechanism.init(rng.root(4)), jnp.arange(64, dtype=jnp.float32)
    alone, _ = jax.jit(mechanism.update)(sums, state)
    mesh = jax.make_mesh((devices,), ("d",), devices=jax.devices()[:devices])
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    spread = jax.device_put((sums, state), everywhere)
    noisy, _ = jax.jit(mechanism.update)(*spread)
    np.testing.assert_array_equal(noisy, alone)


# --- what it costs -----------------------------------------------------------------


def release(z, count=1, q=None):
    event = Event(z)
    if q is not None:
        event = dp_accounting.PoissonSampledDpEvent(q, event)
    return dp_accounting.SelfComposedDpEvent(event, count)


def gaussian(event):
    """The same of `dp_accounting.GaussianDpEvent`."""
    part = event.event
    inner = getattr(part, "event", part)
    made = dp_accounting.GaussianDpEvent(inner.noise_multiplier)
    if inner is not part:
        made = dp_accounting.PoissonSampledDpEvent(part.sampling_probability, made)
    return dp_accounting.SelfComposedDpEvent(made, event.count)


@pytest.mark.parametrize("z,count", [(1.0, 1), (5.0, 10), (0.4, 1), (40.0, 1000)])
@pytest.mark.parametrize("relation", [ADD, SPECIAL, ONE])
def test_an_unsampled_release_costs_what_its_concentration_says(z, count, relation):
    event = release(z, count)
    found = accounting.epsilon(event, 1e-5, relation, "rdp")
    direct = rdp.RdpAccountant(neighboring_relation=relation).compose(gaussian(event))
    assert found == pytest.approx(direct.get_epsilon(1e-5), rel=1e-6)
    # zCDP: rho = count / (2 z^2), a line of Renyi divergences, over a fine grid of
    # orders (Canonne, Kamath and Steinke 2020, Corollary 13).
    a = 1 + np.logspace(-2, 3, 20_000)
    rho = count / (2 * z**2)
    closed = rho * a + np.log1p(-1 / a) - (math.log(1e-5) + np.log(a)) / (a - 1)
    assert closed.min() <= found * (1 + 1e-9) and found < 1.01 * closed.min()


@pytest.mark.parametrize("shift,scale,q", [(1, 2, 0.1), (2, 3, 0.5), (3, 2, 0.02)])
def test_a_sampled_release_costs_what_its_sums_over_the_integers_say(shift, scale, q):
    values, at_zero = law(scale, reach=60)
    values, at_zero = values.astype(float), np.exp(-(values**2) / (2.0 * scale**2))
    total = at_zero.sum()
    log_p = -((values - shift) ** 2) / (2 * scale**2) - math.log(total)
    log_q = -(values**2) / (2 * scale**2) - math.log(total)
    mixed = np.logaddexp(math.log(q) + log_p, math.log1p(-q) + log_q)
    orders = [2, 3, 5, 8, 16, 32, 64]
    worst = []
    for a in orders:
        forth = special.logsumexp(a * mixed + (1 - a) * log_q) / (a - 1)
        back = special.logsumexp(a * log_q + (1 - a) * mixed) / (a - 1)
        assert back <= forth * (1 + 1e-9)  # as for a Gaussian, whose formula is `forth`
        worst.append(50 * forth)
    expected, _ = rdp.compute_epsilon(orders, worst, 1e-5)
    event = release(scale / shift, 50, q)
    found = rdp.RdpAccountant(orders).compose(gaussian(event)).get_epsilon(1e-5)
    assert found == pytest.approx(expected, rel=1e-6)
    # The accountant's own orders are more, and whole.
    by = accounting.epsilon(event, 1e-5, ADD, "rdp")
    assert 0.9 * expected < by <= expected * (1 + 1e-9)
    assert all(isinstance(a, int) for a in accounting._WHOLE_ORDERS)
    whole = rdp.RdpAccountant(accounting._WHOLE_ORDERS).compose(gaussian(event))
    assert by == pytest.approx(whole.get_epsilon(1e-5), rel=1e-6)


@pytest.mark.parametrize("shift,scale,q", [(1, 1, 1.0), (2, 5, 1.0), (1, 2, 0.1)])
def test_the_exact_loss_in_one_dimension_lies_below(shift, scale, q):
    exact = pld.privacy_loss_distribution.from_discrete_gaussian_mechanism(
        scale, sensitivity=shift, sampling_prob=q
    ).self_compose(20)
    event = release(scale / shift, 20, None if q == 1 else q)
    for delta in (1e-3, 1e-6):
        found = accounting.epsilon(event, delta, ADD, "rdp")
        tight = exact.get_epsilon_for_delta(delta)
        assert tight <= found < 1.5 * tight


def test_orders_between_whole_ones_are_not_used_for_samples():
    # At large epsilon the best order is below 2, which a sampled release cannot use.
    event = release(0.2, 1, 0.5)
    by = accounting.epsilon(event, 1e-5, ADD, "rdp")
    any_order = rdp.RdpAccountant().compose(gaussian(event)).get_epsilon(1e-5)
    assert by > 1.003 * any_order
    assert accounting.epsilon(gaussian(event), 1e-5, ADD, "rdp") == any_order


def test_what_has_no_bound_is_refused():
    sampled = release(1.0, 3, 0.1)
    for event, relation, accountant, sentence in (
        (release(1.0), ADD, "pld", "no bound but by RDP; use accountant='rdp'"),
        (sampled, ADD, "pld", "no bound but by RDP; use accountant='rdp'"),
        (sampled, ONE, "rdp", "no Poisson sampling under REPLACE_ONE; change the rel"),
        (
            dp_accounting.SampledWithoutReplacementDpEvent(100, 10, Event(1.0)),
            ONE,
            "rdp",
            "is not a composition of",
        ),
        (release(0.0), ADD, "rdp", "noise_multiplier=0.0 gives epsilon=inf"),
    ):
        with pytest.raises(ValueError, match=sentence):
            accounting.epsilon(event, 1e-5, relation, accountant)
    for outer in (dp_accounting.LaplaceDpEvent(1.0), dp_accounting.NoOpDpEvent()):
        with pytest.raises(ValueError, match="grid_bits='.*' has no bound with discr"):
            discrete_gaussian.discrete(outer)


# --- plans -------------------------------------------------------------------------

PARAMS = {"w": jnp.zeros((30, 20)), "b": jax.ShapeDtypeStruct((20,), jnp.float32)}


def make(**options):
    def loss_fn(params, example, key):
        return jnp.sum(params["w"])

    clipper = clipping.clipped_grad(
        loss_fn, l2_clip_norm=0.5, trainable=options.pop("trainable", None)
    )
    sampler = sampling.poisson(1000, 100, physical_batch_size=50, seed=0)
    options = {
        "steps": 20,
        "delta": 1e-5,
        "relation": ADD,
        "accountant": "rdp",
        "params": PARAMS,
        "grid_bits": 12,
        "sampler": sampler,
    } | options
    return plan.make(clipper, options.pop("sampler"), **options)


def test_a_plan_on_a_grid_costs_a_four_thousandth_more():
    made = make(noise_multiplier=1.5)
    continuous = make(noise_multiplier=1.5, grid_bits=None)
    assert made.epsilon() > continuous.epsilon()
    # Orders are whole here, and the multiplier is 2^-12 smaller.
    assert made.epsilon() == pytest.approx(continuous.epsilon(), rel=5e-3)
    grid = discrete_gaussian.grid(1.5 * 0.5, 0.5, 620)
    part = dp_accounting.PoissonSampledDpEvent(0.1, Event(grid.noise_multiplier))
    assert made.event() == dp_accounting.SelfComposedDpEvent(part, 20)
    coarse = make(noise_multiplier=1.501, grid_bits=1)
    spacing = discrete_gaussian.grid(1.0, 0.5, 620, bits=1).spacing
    assert 1.501 * 0.5 < coarse.noise_stddev() < 1.501 * 0.5 + spacing
    assert (coarse.noise_stddev() / spacing).is_integer()
    sums = {"w": jnp.zeros((30, 20)), "b": jnp.zeros(20)}
    noisy, _ = made.mechanism.update(sums, made.mechanism.init(rng.root(0)))
    drawn = np.concatenate([np.ravel(x) for x in jax.tree.leaves(noisy)])
    # 620 draws: the standard deviation is known to 2.8%.
    assert np.std(drawn) == pytest.approx(made.noise_stddev(), rel=0.12)
    text = made.explain()
    assert f"multiples of {grid.spacing:g}, which adds 0.00" in text
    assert "Epsilon by PLD: none (discrete Gaussian noise has no bound but" in text
    assert f"scale {grid.scale} steps" in text
    assert made.digest != continuous.digest
    assert made.digest != make(noise_multiplier=1.5, grid_bits=13).digest


def test_a_plan_on_a_grid_is_calibrated_and_counts_what_is_trained():
    made = make(epsilon=2.0)
    assert 0.9995 * 2 <= made.epsilon() <= 2.0
    few = make(noise_multiplier=1.0, trainable=("b",), grid_bits=1)
    assert few.event().event.event.noise_multiplier == pytest.approx(
        discrete_gaussian.grid(0.5, 0.5, 20, bits=1).noise_multiplier
    )
    epochs = sampling.shuffled(1000, 100, physical_batch_size=50, seed=0)
    made = make(noise_multiplier=4.0, sampler=epochs, relation=SPECIAL)
    grid = discrete_gaussian.grid(2.0, 0.5, 620)
    assert made.event() == release(grid.noise_multiplier, 2)


@pytest.mark.parametrize(
    "options,sentence",
    [
        ({"accountant": "pld"}, "no bound but by RDP; set privacy.accountant='rdp'"),
        ({"params": None}, "params=None must be given with grid_bits, since what roun"),
        ({"grid_bits": 0}, "grid_bits=0 must be >= 1; 12 is usual"),
        ({"grid_bits": 31}, "grid_bits=31 must be at most 30"),
        ({"grid_bits": 30}, r"grid_bits='scale \S+' makes the noise more than the"),
        (
            {"noise_schedule": schedules.exponential(20, 10, rho=0.5)},
            "grid_bits=12 makes one grid for one noise and one clip norm throughout",
        ),
        ({"noise_schedule": [2.0] * 20}, "grid_bits=12 makes one grid for one noise"),
        (
            {
                "strategy": correlated_noise.optimize(20, 2),
                "sampler": sampling.cyclic_poisson(
                    1000, 50, bands=2, physical_batch_size=50
                ),
            },
            "grid_bits=12 makes one grid for one noise",
        ),
        (
            {"sampler": sampling.fixed_size(1000, 50, physical_batch_size=50),
             "relation": ONE},
            "SampledWithoutReplacementDpEvent' has no bound with discrete",
        ),
    ],
)  # fmt: skip
def test_plans_that_do_not_match_raise(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(noise_multiplier=1.0, **options)


def test_bad_sums_and_roots_are_refused():
    mechanism = discrete_gaussian.mechanism(discrete_gaussian.grid(1.0, 1.0, 4))
    state = mechanism.init(rng.root(0))
    with pytest.raises(ValueError, match="sums=5 coordinates are more than the 4 whos"):
        mechanism.update({"w": jnp.zeros(5)}, state)
    with pytest.raises(ValueError, match=r"sums\['w'\].dtype='bfloat16' must be float"):
        mechanism.update({"w": jnp.zeros(3, jnp.bfloat16)}, state)
    with pytest.raises(ValueError, match="tracks no clip norm"):
        mechanism.update({"w": jnp.zeros(3)}, state, within=jnp.zeros(1))
    with pytest.raises(ValueError, match=r"must be a trustml.rng.Root"):
        mechanism.init(jax.random.key(0))
    with pytest.raises(Exception, match=r"sums\['w'\]='NaN or inf' must be finite"):
        jax.block_until_ready(mechanism.update({"w": jnp.full(3, jnp.nan)}, state))
