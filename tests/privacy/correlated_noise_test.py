"""Banded noise: against dense matrices, its law, its plan, and what it gains."""

import math

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, optimize

from trustml import rng
from trustml.privacy import accounting, correlated_noise, noise, plan, sampling

ADD = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
ONE = dp_accounting.NeighboringRelation.REPLACE_ONE


class Clipper:
    """What a plan asks of a clipper, by hand."""

    privacy_unit = "example"
    trainable = None
    l2_clip_norm = 1.5
    rule = "flat"

    def sensitivity(self, relation):
        return (2 if relation is ONE else 1) * self.l2_clip_norm


def cyclic(bands, n=10_000, m=100, **options):
    return sampling.cyclic_poisson(
        n, m, bands=bands, physical_batch_size=32, seed=0, **options
    )


def make(bands, steps=64, sampler=None, clipper=None, **options):
    if "strategy" not in options:
        options["strategy"] = correlated_noise.optimize(steps, bands)
    options = {
        "delta": 1e-5,
        "relation": ADD,
        "noise_multiplier": 2.0,
        "params": {"w": jnp.zeros(3, jnp.float32)},
    } | options
    sampler = sampler or cyclic(bands)
    return plan.make(clipper or Clipper(), sampler, steps=steps, **options)


def dense(coefficients, steps):
    column = np.zeros(steps)
    column[: len(coefficients)] = coefficients
    return linalg.toeplitz(column, np.zeros(steps))


def released(mechanism, zeros, steps, root):
    """Noise of every step, in one compiled scan."""

    def one(state, _):
        noisy, state = mechanism.update(zeros, state)
        return state, noisy

    run = jax.jit(lambda state: jax.lax.scan(one, state, length=steps)[1])
    return run(mechanism.init(root))


# --- the mechanism -----------------------------------------------------------------


@pytest.mark.parametrize("bands", [1, 2, 8, 32])
def test_streamed_noise_is_the_dense_product(bands):
    steps, stddev = 512, 1.7
    strategy = correlated_noise.optimize(steps, bands)
    zeros = {"w": jnp.zeros((3, 2), jnp.float32), "frozen": None}
    mechanism = correlated_noise.banded(strategy, stddev=stddev, like=zeros)
    streamed = released(mechanism, zeros, steps, rng.root(0))
    plain = released(noise.gaussian(stddev), zeros, steps, rng.root(0))
    assert streamed["frozen"] is None
    z = np.asarray(plain["w"], np.float64).reshape(steps, -1)
    expected = linalg.solve_triangular(
        dense(strategy.coefficients, steps), z, lower=True
    )
    found = np.asarray(streamed["w"]).reshape(steps, -1)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    if bands == 1:
        np.testing.assert_array_equal(streamed["w"], plain["w"])


def test_empirical_covariance_over_steps():
    steps, bands, count, stddev = 10, 4, 200_000, 2.0
    strategy = correlated_noise.optimize(steps, bands)
    zeros = jnp.zeros(count, jnp.float32)
    mechanism = correlated_noise.banded(strategy, stddev=stddev, like=zeros)
    y = np.asarray(released(mechanism, zeros, steps, rng.root(1)), np.float64)
    inverse = linalg.inv(dense(strategy.coefficients, steps))
    expected = stddev**2 * inverse @ inverse.T
    # Standard error of a covariance: sqrt((s_ii s_jj + s_ij^2) / n).
    diagonal = np.diag(expected)
    error = np.sqrt((np.outer(diagonal, diagonal) + expected**2) / count)
    assert np.abs((y @ y.T / count - expected) / error).max() < 5
    scale = correlated_noise.released_scale(strategy, steps)
    np.testing.assert_allclose(stddev * scale, np.sqrt(diagonal), rtol=1e-9)
    # Correlated indeed: neighbours take back much of each other.
    assert expected[4, 5] < -0.2 * expected[4, 4]


def test_noise_is_added_to_the_sums_and_the_state_resumes():
    strategy = correlated_noise.optimize(16, 4)
    sums = {"a": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "b": jnp.float32(1)}
    mechanism = correlated_noise.banded(strategy, stddev=0.5, like=sums)
    update = jax.jit(mechanism.update)
    zeros = jax.tree.map(jnp.zeros_like, sums)
    state = alone = mechanism.init(rng.root(2))
    rows, saved = [], None
    for step in range(9):
        noisy, state = update(sums, state)
        added, alone = update(zeros, alone)
        rows.append(np.asarray(noisy["a"]))
        np.testing.assert_allclose(
            noisy["a"], sums["a"] + added["a"], rtol=1e-6, atol=1e-6
        )
        if step == 4:
            leaves, tree = jax.tree.flatten(state)
            saved = tree.unflatten([jnp.asarray(np.asarray(leaf)) for leaf in leaves])
    assert update._cache_size() == 1
    assert int(state.noise.step) == 9
    for step in range(5, 9):
        noisy, saved = update(sums, saved)
        np.testing.assert_array_equal(noisy["a"], rows[step])


def test_sums_unlike_the_buffers_are_refused():
    strategy = correlated_noise.strategy([1.0, 0.5])
    like = {"w": jnp.zeros(3, jnp.float32)}
    mechanism = correlated_noise.banded(strategy, stddev=1.0, like=like)
    state = mechanism.init(rng.root(0))
    for sums, sentence in (
        ({"w": jnp.zeros(3, jnp.bfloat16)}, r"sums\['w'\]='bfloat16\[3\]' must be flo"),
        ({"w": jnp.zeros(4, jnp.float32)}, r"sums\['w'\]='float32\[4\]' must be float"),
        (
            {"v": jnp.zeros(3, jnp.float32)},
            r"sums=\[\"\['v'\]\"\] have other leaves .*",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            mechanism.update(sums, state)
    with pytest.raises(ValueError, match="within='int' is given to a mechanism"):
        mechanism.update(like, state, 3)
    with pytest.raises(ValueError, match="noise_stddev=0.0 must be a finite"):
        correlated_noise.banded(strategy, stddev=0.0, like=like)


# --- the strategy ------------------------------------------------------------------


def momentum_sums(steps, beta):
    """The matrix from gradients to parameters of SGD with momentum, by running it."""
    columns = []
    for start in range(steps):
        velocity = total = 0.0
        rows = []
        for step in range(steps):
            velocity = beta * velocity + (step == start)
            total += velocity
            rows.append(total)
        columns.append(rows)
    return np.array(columns).T


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("bands", [1, 3, 12])
def test_errors_are_those_of_dense_matrices(bands, momentum):
    steps = 12
    strategy = correlated_noise.optimize(steps, bands, momentum=momentum)
    matrix = dense(strategy.coefficients, steps)
    product = momentum_sums(steps, momentum) @ linalg.inv(matrix)
    square = np.max(np.sum(matrix**2, 0)) * np.sum(product**2, 1)
    for error, expected in (("mean", np.mean(square)), ("max", np.max(square))):
        found = correlated_noise.squared_error(
            strategy, steps, momentum=momentum, error=error
        )
        assert found == pytest.approx(expected, rel=1e-9)
    assert strategy.column_norm == pytest.approx(
        math.sqrt(np.max(np.sum(matrix**2, 0)))
    )


@pytest.mark.parametrize("error", ["mean", "max"])
@pytest.mark.parametrize("steps,bands", [(8, 2), (8, 4), (6, 6)])
def test_optimize_finds_what_a_search_without_gradients_finds(steps, bands, error):
    sums = np.tril(np.ones((steps, steps)))

    def by_hand(tail):
        c = np.concatenate([[1.0], tail])
        square = np.sum((sums @ linalg.inv(dense(c, steps))) ** 2, 1)
        return (c @ c) * (np.mean(square) if error == "mean" else np.max(square))

    start = 0.5 * np.ones(bands - 1)
    options = {"xatol": 1e-7, "fatol": 1e-12, "maxiter": 20_000, "maxfev": 20_000}
    other = optimize.minimize(by_hand, start, method="Nelder-Mead", options=options)
    found = correlated_noise.optimize(steps, bands, error=error)
    value = correlated_noise.squared_error(found, steps, error=error)
    assert value <= other.fun * (1 + 1e-6)
    np.testing.assert_allclose(found.coefficients[1:], other.x, atol=2e-3)


def test_more_bands_leave_less_error_at_the_same_noise():
    errors = [
        correlated_noise.squared_error(correlated_noise.optimize(512, b), 512)
        for b in (1, 2, 8, 32)
    ]
    assert errors[0] == pytest.approx(np.mean(np.arange(1, 513)))
    assert all(errors[i + 1] < 0.6 * errors[i] for i in range(3))


@pytest.mark.parametrize(
    "arguments,sentence",
    [
        ({"steps": 0}, "steps=0 must be >= 1"),
        ({"bands": 0}, "bands=0 must be >= 1; 1 is DP-SGD"),
        ({"bands": 11}, "bands=11 must be at most steps=10; lower it"),
        ({"momentum": 1.0}, "momentum=1.0 must be at least 0 and below 1; 0.9"),
        ({"error": "median"}, "error='median' is not one of mean, max"),
    ],
)
def test_bad_arguments_of_optimize(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        correlated_noise.optimize(**({"steps": 10, "bands": 2} | arguments))


def test_bad_coefficients():
    assert correlated_noise.strategy([1, 0.5]).coefficients == (1.0, 0.5)
    for given, sentence in (
        ([], r"coefficients\[0\]=None must be 1; divide all by the first"),
        ([2.0, 1.0], r"coefficients\[0\]=2.0 must be 1"),
        ([1.0, math.nan], r"coefficients\[1\]=nan must be finite"),
    ):
        with pytest.raises(ValueError, match=sentence):
            correlated_noise.strategy(given)


# --- sampler and plan --------------------------------------------------------------


@pytest.mark.parametrize("bands", [1, 4, 8])
def test_one_example_moves_what_is_hidden_by_no_more_than_the_event_says(bands):
    # ||T G||^2 <= S^2 col^2 a participation, whatever direction each of them takes.
    steps, norm = 40, 1.5
    sampler = cyclic(bands, n=64, m=4)
    strategy = correlated_noise.optimize(steps, bands)
    matrix = dense(strategy.coefficients, steps)
    generator = np.random.default_rng(0)
    member = np.zeros((steps, 64), bool)
    for step in range(steps):
        member[step, sampler.draw(step)] = True
    attained = 0.0
    for example in range(64):
        times = np.flatnonzero(member[:, example])
        moved = np.zeros((steps, 3))
        directions = generator.standard_normal((len(times), 3))
        moved[times] = (
            norm * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        )
        allowed = len(times) * (norm * strategy.column_norm) ** 2
        found = np.sum((matrix @ moved) ** 2)
        assert found <= allowed * (1 + 1e-9)
        attained = max(attained, found / allowed) if len(times) else attained
    assert attained > 0.99


def test_one_band_is_dp_sgd():
    poisson = sampling.poisson(10_000, 100, physical_batch_size=32, seed=0)
    one = cyclic(1)
    for step in (0, 1, 17, 10**6):
        np.testing.assert_array_equal(one.draw(step), poisson.draw(step))
    for relation in (ADD, ONE):
        for strategy in (None, correlated_noise.optimize(64, 1)):
            ours = make(1, relation=relation, strategy=strategy)
            theirs = make(1, relation=relation, sampler=poisson, strategy=None)
            assert ours.event() == theirs.event() and ours.event(7) == theirs.event(7)
            assert ours.epsilon() == theirs.epsilon()
            assert ours.noise_stddev() == ours.noise_stddev(63) == 3.0
            noisy = [
                made.mechanism.update(
                    jnp.zeros(9, jnp.float32), made.mechanism.init(rng.root(0))
                )[0]
                for made in (ours, theirs)
            ]
            np.testing.assert_array_equal(*noisy)


@pytest.mark.parametrize("bands,relation", [(2, ADD), (8, ADD), (8, ONE)])
def test_the_event_is_that_of_a_bth_of_the_steps_at_b_times_the_rate(bands, relation):
    made = make(bands, relation=relation)
    z = 2.0 if relation is ADD else 1.0
    for steps, count in ((1, 1), (bands, 1), (bands + 1, 2), (64, 64 // bands)):
        sampled = dp_accounting.PoissonSampledDpEvent(
            0.01 * bands, dp_accounting.GaussianDpEvent(z)
        )
        expected = dp_accounting.SelfComposedDpEvent(sampled, count)
        assert made.event(steps) == expected
    if relation is ADD:
        direct = dp_accounting.pld.PLDAccountant(ADD).compose(made.event())
        assert made.epsilon() == pytest.approx(direct.get_epsilon(1e-5), rel=1e-6)


def test_replace_one_covers_the_record_left_out():
    class Loose(Clipper):
        def sensitivity(self, relation):
            return 2 * self.l2_clip_norm

    made = make(4, relation=ONE, clipper=Loose())
    assert made.event().event.event == dp_accounting.GaussianDpEvent(0.5)


def test_the_released_noise_is_the_plans():
    made = make(8, steps=20, params={"w": jax.ShapeDtypeStruct((100_000,), "float32")})
    zeros = {"w": jnp.zeros(100_000, jnp.float32)}
    y = released(made.mechanism, zeros, 20, rng.root(3))["w"]
    strategy = correlated_noise.optimize(20, 8)
    assert made.noise_stddev() == pytest.approx(2.0 * 1.5 * strategy.column_norm)
    for step in (0, 1, 7, 19):
        # Standard error of a standard deviation: 1 / sqrt(2 n) = 0.22 %.
        found = float(jnp.std(y[step]))
        assert found == pytest.approx(made.noise_stddev(step), rel=5 * 0.0022)
    assert made.noise_stddev(19) > 1.02 * made.noise_stddev(0)


def test_an_example_stays_in_its_part_and_joins_at_the_parts_rate():
    bands, n, steps = 4, 400, 4000
    sampler = cyclic(bands, n=n, m=20)
    assert sampler.sample_rate == 0.2 and sampler.bands == bands
    member = np.zeros((steps, n), bool)
    for step in range(steps):
        member[step, sampler.draw(step)] = True
    by_phase = np.stack([member[phase::bands].sum(0) for phase in range(bands)])
    assert np.all(np.count_nonzero(by_phase, axis=0) == 1)
    joined = by_phase.max(0)
    turns = steps // bands
    statistic = np.sum((joined - turns * 0.2) ** 2) / (turns * 0.2 * 0.8)
    # Chi-squared with n degrees: mean n, variance 2 n.
    assert abs(statistic - n) < 4 * math.sqrt(2 * n)
    # Parts are thrown, not dealt: binomial sizes, independent of each other's ids.
    sizes = np.count_nonzero(by_phase, axis=1)
    assert np.sum((sizes - n / bands) ** 2) / (n / bands * 0.75) < 16
    # Another example more changes no one's part.
    larger = cyclic(bands, n=n + 1, m=20, sample_rate=0.2)
    again = np.zeros((400, n + 1), bool)
    for step in range(400):
        again[step, larger.draw(step)] = True
    for phase in range(bands):
        seen = np.flatnonzero(again[phase::bands].any(0)[:n])
        np.testing.assert_array_equal(by_phase[phase, seen] > 0, True)


@pytest.mark.parametrize(
    "arguments,sentence",
    [
        ({"bands": 0}, "bands=0 must be >= 1; 1 is Poisson sampling"),
        ({"bands": 101}, "bands=101 must be at most the 100 examples there are"),
        ({"bands": 11}, "expected_batch_size=10 must be at most the 100 examples the.*"
         "over 11 bands"),
        ({"sample_rate": 1.1}, "sample_rate=1.1 must be at most 1"),
    ],
)  # fmt: skip
def test_bad_arguments_of_the_sampler(arguments, sentence):
    given = {"bands": 2, "physical_batch_size": 4, "seed": 0} | arguments
    with pytest.raises(ValueError, match=sentence):
        sampling.cyclic_poisson(100, 10, **given)


MISMATCHES = {
    "a strategy without its sampler": (
        {"sampler": sampling.poisson(1000, 10, physical_batch_size=8, seed=0)},
        "strategy.bands=4 does not fit the sampler poisson with bands=1: .*cyclic_poi",
    ),
    "a strategy over shuffled epochs": (
        {"sampler": sampling.shuffled(1000, 10, physical_batch_size=8, seed=0)},
        "strategy.bands=4 does not fit the sampler shuffled with bands=1",
    ),
    "a sampler of other bands": (
        {"sampler": cyclic(8)},
        "strategy.bands=4 does not fit the sampler cyclic_poisson with bands=8",
    ),
    "a sampler without a strategy": (
        {"strategy": None},
        "strategy.bands=1 does not fit the sampler cyclic_poisson with bands=4",
    ),
    "no parameters": (
        {"params": None},
        "params=None must be given with a banded strategy.*plan.make",
    ),
    "a schedule": (
        {"noise_schedule": np.linspace(1, 0.5, 64)},
        "noise_schedule='64 levels' does not fit a banded strategy",
    ),
    "more bands than steps": (
        {"steps": 3},
        "strategy.bands=4 must be at most steps=3; take fewer bands",
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_pairs_that_do_not_match_raise(name):
    options, sentence = MISMATCHES[name]
    options = {"strategy": correlated_noise.optimize(64, 4)} | options
    with pytest.raises(ValueError, match=sentence):
        make(4, **options)


def test_a_clip_norm_that_moves_is_refused():
    class Rule:
        name, adapt, groups = "quantile", object(), None

    class Moving(Clipper):
        rule = Rule()

    with pytest.raises(ValueError, match="bands=4 does not fit a rule that moves the"):
        make(4, clipper=Moving())


def test_frozen_leaves_have_no_buffers():
    class Partly(Clipper):
        trainable = ("head",)

    params = {"body": jnp.zeros(5, jnp.float32), "head": jnp.zeros(2, jnp.bfloat16)}
    made = make(4, clipper=Partly(), params=params)
    state = made.mechanism.init(rng.root(0))
    assert state.buffers["body"] is None
    assert state.buffers["head"].shape == (3, 2)
    assert state.buffers["head"].dtype == jnp.float32


def test_the_digest_knows_the_strategy():
    base = make(4)
    other = make(4, strategy=correlated_noise.strategy([1.0, 0.1, 0.1, 0.1]))
    assert base.event() == other.event() and base.digest != other.digest
    assert base.digest == make(4, sampler=cyclic(4).reseed(9)).digest
    assert base.digest != make(2).digest


def test_explain_tells_of_the_correlation():
    made = make(4)
    text = made.explain()
    scale = 2.0 * Clipper.l2_clip_norm
    strategy = correlated_noise.optimize(64, 4)
    error = scale * math.sqrt(correlated_noise.squared_error(strategy, 64))
    for words in (
        "Batches: cyclic_poisson, sample rate 0.04 within one of 4 parts, expected",
        "Correlation: banded over 4 steps",
        f"{made.noise_stddev(63):.6g} that of the last",
        f"off by {error:.6g}",
        f"standard deviation {made.noise_stddev():.6g} on the sum",
    ):
        assert words in text
    assert "Correlation" not in make(1).explain()


# --- what it gains -----------------------------------------------------------------


def test_the_best_number_of_bands_beats_dp_sgd_at_equal_epsilon():
    found = correlated_noise.choose_bands(
        20_000, 200, steps=512, epsilon=1.0, delta=1e-5, relation="add_or_remove_one",
        candidates=[1, 2, 8, 32, 100_000],
    )  # fmt: skip
    assert [row[0] for row in found.table] == [1, 2, 8, 32]
    errors = {bands: error for bands, _, error in found.table}
    assert errors[found.strategy.bands] == min(errors.values()) < 0.9 * errors[1]
    for bands, z, error in found.table:
        made = make(
            bands,
            steps=512,
            sampler=cyclic(bands, n=20_000, m=200),
            noise_multiplier=z,
            strategy=correlated_noise.optimize(512, bands),
        )
        assert 0.999 <= made.epsilon() <= 1.0
        square = correlated_noise.squared_error(
            correlated_noise.optimize(512, bands), 512
        )
        assert error == pytest.approx(z * math.sqrt(square))


def test_no_candidate_is_possible():
    with pytest.raises(ValueError, match=r"candidates=\[64\] must hold a number up to"):
        correlated_noise.choose_bands(
            1000, 100, steps=50, epsilon=1.0, delta=1e-5, relation=accounting.Relation(
                1), candidates=[64],
        )  # fmt: skip
