"""Order, refusals and sensitivity of chains, and that any of them goes under jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.federated.aggregation import sensitivity
from trustml import rng
from trustml.federated import weighting as rules
from trustml.federated.aggregation import (
    chain,
    clipping,
    compression,
    dp,
    link,
    low_rank,
    robust,
    secure,
    weighting,
)
from trustml.privacy import correlated_noise

D, M, W = 7, 8, 4.0
ONE = weighting.of(rules.mean(W))
CAPPED = weighting.of(rules.capped_data(100.0, np.full(M, 100), np.full(M, 0.5)))
TWICE_ONE = weighting.of(rules.horvitz_thompson(np.ones(M), np.full(M, 1 / 16)))
BY_DATA = weighting.of(rules.by_data())
STRATEGY = correlated_noise.strategy([1.0, 0.5, 0.25])


def lattice(**options):
    return secure.modular_sum(2.0**-14, max_clients=M, size=D, **options)


# Every kind of link in a chain with a declared sensitivity.
PRIVATE = {
    "fixed": (clipping.clip(1.5), ONE, dp.central(1.0)),
    "capped": (clipping.clip(0.5), CAPPED, dp.central(2.0)),
    "inverse": (
        clipping.clip(1.0),
        TWICE_ONE,
        dp.central(1.0),
    ),
    "adaptive": (clipping.adaptive(1.5, bit_stddev=2.0), ONE, dp.central(1.0)),
    "quantised": (
        clipping.clip(1.0),
        compression.quantise(2),
        clipping.clip(1.0),
        ONE,
        dp.central(1.0),
    ),
    "rotated": (
        clipping.clip(1.0),
        compression.quantise(1, rotate=True),
        clipping.clip(1.2),
        ONE,
        dp.central(1.0),
    ),
    "top_k": (compression.top_k(0.3), clipping.clip(1.0), ONE, dp.central(1.0)),
    "no_feedback": (
        clipping.clip(1.0),
        compression.top_k(0.3, error_feedback=False),
        ONE,
        dp.central(1.0),
    ),
    "sign": (
        clipping.clip(1.0),
        compression.sign(),
        clipping.clip(1.0),
        ONE,
        dp.central(1.0),
    ),
    "drive": (
        clipping.clip(1.0),
        compression.drive(),
        clipping.clip(1.0),
        ONE,
        dp.central(1.0),
    ),
    "low_rank": (low_rank.power_sgd(1), clipping.clip(1.0), ONE, dp.central(1.0)),
    "secure": (
        clipping.clip(1.0),
        CAPPED,
        lattice(neighbours=4),
        dp.discrete(1.0, size=D),
    ),
    "discrete": (clipping.clip(1.0), ONE, dp.discrete(1.0, size=D)),
    "banded": (
        clipping.clip(1.0),
        ONE,
        dp.banded(STRATEGY, noise_multiplier=1.0, rounds=1),
    ),
}
PLAIN = {
    "by_data": (compression.quantise(8), BY_DATA),
    "local": (clipping.clip(1.0), ONE, dp.local(1.0)),
    "robust": (clipping.adaptive(1.0, bit_stddev=0.0), robust.multi_krum(1)),
}


def inputs(seed=0):
    gen = np.random.default_rng(seed)
    return sensitivity.tree(jnp.asarray(gen.normal(size=(M, D)), jnp.float32))


def check_contract(aggregator, made):
    """One program, a state that comes out as it went in, empty cohorts included."""
    examples, messages = np.ones(M), np.ones((M, D))
    for count in (0, 1, M):
        made.release(messages, examples, np.arange(M) < count, 0)
    assert made.run._cache_size() == 1
    state, weights = made.state(0), np.ones(M, np.float32)
    update, after, memory, record, _ = made.run(
        state, messages.astype(np.float32), weights, np.zeros(M, bool)
    )
    for old, new in ((state, after), (made.memory, rows_of(memory)[0])):
        assert jax.tree.structure(old) == jax.tree.structure(new)
        same = jax.tree.map(
            lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), old, new
        )
        assert all(jax.tree.leaves(same))
    assert np.all(np.asarray(record.bits_up) > 0)
    found = sensitivity.flat(update)
    # An empty cohort gets its noise, of the server; there is nobody for local noise.
    declared = aggregator.sensitivity() is not None
    private = declared and aggregator.release.kind != "local"
    assert np.all(found != 0) if private else not np.any(found)


@pytest.mark.parametrize("name", PLAIN)
def test_one_program_for_every_cohort_and_stable_state(name):
    aggregator = chain.chain(*PLAIN[name])
    made = sensitivity.of_chain(aggregator, D, expected_weight=W)
    check_contract(aggregator, made)


# What other chains have in other company.
TWICE = ("inverse", "quantised", "no_feedback", "sign", "drive", "discrete")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in TWICE else name
        for name in PRIVATE
    ],
)
def test_nobody_moves_the_sum_by_more_than_declared(name):
    aggregator = chain.chain(*PRIVATE[name])
    made = sensitivity.of_chain(aggregator, D, expected_weight=W, memory=3.0)
    removed, replaced = sensitivity.largest_changes(made.release, D, cohorts=10)
    declared = aggregator.sensitivity()
    # Rounding of float32 sums and of noise that cancels: 1e-6 of about 20. A discrete
    # release rounds the sum once more, to steps of 2^-12 of the sensitivity.
    room = 3e-4 * declared + 1e-5
    assert 0.5 * declared < removed <= declared + room
    assert replaced <= 2 * declared + 2 * room
    check_contract(aggregator, made)


def weighted_mean_with_noise_for_plain_one(z, clip_norm):
    """Noise of stddev z C / m after a mean weighted by examples."""

    def release(messages, examples, present, seed):
        norms = np.linalg.norm(np.nan_to_num(messages, posinf=0, neginf=0), axis=1)
        finite = np.all(np.isfinite(messages), axis=1)
        factors = np.minimum(1, clip_norm / np.maximum(norms, 1e-300))
        clean = np.where(finite[:, None], messages, 0) * factors[:, None]
        weights = examples * present
        total = max(weights.sum(), 1)
        noise = np.random.default_rng(seed).normal(size=messages.shape[1])
        mean = (weights[:, None] * clean).sum(0) / total
        return mean + z * clip_norm / max(present.sum(), 1) * noise

    return release


def test_the_brute_force_catches_noise_for_the_wrong_mean():
    release = weighted_mean_with_noise_for_plain_one(1.0, 1.0)
    with pytest.raises(AssertionError, match="is a multiplier of 0[.]"):
        sensitivity.check_noise_covers(release, D, 1.0)
    wrong = (clipping.clip(1.0), BY_DATA, dp.central(1.0))
    expected = r"weighting.by_data has no largest weight for dp.central\(1\)"
    with pytest.raises(ValueError, match=expected):
        chain.chain(*wrong)


@pytest.mark.parametrize(
    "name", ["capped", pytest.param("adaptive", marks=pytest.mark.slow)]
)
def test_the_brute_force_lets_honest_noise_pass(name):
    aggregator = chain.chain(*PRIVATE[name])
    release = sensitivity.of_chain(aggregator, D, expected_weight=W).release
    z = aggregator.release.noise_multiplier
    sensitivity.check_noise_covers(release, D, z, cohorts=8)
    with pytest.raises(AssertionError, match="is a multiplier of"):
        sensitivity.check_noise_covers(release, D, 1.5 * z, cohorts=8)


def one_round(aggregator, deltas, examples, mask):
    """(update, memory, records, info) of one round of a chain that sums."""
    weights = aggregator.rule.of(np.arange(M), examples).astype(np.float32)

    @sensitivity.quick_jit
    def run(deltas, weights, mask, keys):
        state = aggregator.init(jax.tree.map(lambda x: x[0], deltas))
        sent, memory, records = jax.vmap(aggregator.client, (None, 0, None, 0))(
            state, deltas, (), keys
        )
        cohort = link.cohort(weights, mask, expected_weight=1.0)
        total = link.weighted_sum(sent, cohort)
        update, _, info = aggregator.server(state, total, cohort, jax.random.key(1))
        return update, memory, records, info

    return run(deltas, weights, mask, jax.random.split(jax.random.key(0), M))


def test_the_default_chain_is_fedavg():
    aggregator = chain.chain(BY_DATA)
    deltas, n = inputs(1), np.array([1, 2, 3, 5, 8, 20, 0, 7])
    mask = np.arange(M) != 5
    update, memory, records, info = one_round(aggregator, deltas, n, mask)
    kept = n * mask
    for name, x in deltas.items():
        wanted = np.tensordot(kept, np.asarray(x, np.float64), axes=1) / kept.sum()
        np.testing.assert_allclose(update[name], wanted, rtol=1e-5, atol=1e-6)
    assert aggregator.sensitivity() is None and aggregator.release is None
    assert np.isnan(info.sensitivity) and float(info.noise_stddev) == 0
    norms = np.linalg.norm([sensitivity.flat(m) for m in rows_of(deltas)], axis=1)
    np.testing.assert_allclose(records.norm, norms, rtol=1e-6)
    assert not jax.tree.leaves(memory)


def rows_of(stack):
    return [jax.tree.map(lambda x, k=k: x[k], stack) for k in range(M)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_message_that_is_not_finite_becomes_zero_and_keeps_its_place(bad):
    deltas = inputs(2)
    deltas["b"] = deltas["b"].at[3, 1, 0].set(bad)
    ones, everyone = np.ones(M), np.ones(M, bool)
    update, _, records, _ = one_round(chain.chain(), deltas, ones, everyone)
    assert np.asarray(records.finite).tolist() == [k != 3 for k in range(M)]
    assert float(records.norm[3]) == 0
    clean = np.asarray(deltas["a"], np.float64)
    clean[3] = 0
    np.testing.assert_allclose(update["a"], clean.sum(0) / M, rtol=1e-5, atol=1e-6)


COMPRESSORS = {
    "quantise": compression.quantise(4),
    "rotated": compression.quantise(4, rotate=True),
    "top_k": compression.top_k(0.1),
    "sign": compression.sign(),
    "sign, no memory": compression.sign(error_feedback=False),
    "drive": compression.drive(),
    "drive, biased": compression.drive(unbiased=False),
    "power_sgd": low_rank.power_sgd(1),
}


def hostile():
    """Messages [n, 8, 8] that overflow in what is made of them, or already have."""
    signs = np.where(np.arange(64) % 3, 1.0, -1.0)
    rows = [c * signs for c in (3e37, 1e38, 3.4e38, 1e-40, np.inf, np.nan)]
    rows += [np.where(np.arange(64) == 5, c, signs) for c in (3e38, -np.inf, np.nan)]
    return {"w": jnp.asarray(rows, jnp.float32).reshape(-1, 8, 8)}


@pytest.mark.parametrize("before", [False, True], ids=["after", "before and after"])
@pytest.mark.parametrize("name", COMPRESSORS)
def test_no_message_overflows_on_its_way(name, before):
    first = [clipping.clip(1.0)] if before else []
    aggregator = chain.chain(*first, COMPRESSORS[name], clipping.clip(1.0), ONE, Z)
    like = {"w": jnp.zeros((8, 8))}
    state = aggregator.init(like, rng.root(0))
    messages = hostile()
    count = len(messages["w"])
    run = sensitivity.quick_jit(jax.vmap(aggregator.client, (None, 0, 0, 0)))
    memory = jax.tree.map(lambda x: jnp.stack([x] * count), aggregator.memory(like))
    for number in range(5):
        keys = jax.random.split(jax.random.key(number), count)
        past = memory
        sent, memory, record = run(state, messages, memory, keys)
        norms = np.linalg.norm(np.asarray(sent.update["w"], np.float64), axis=(1, 2))
        assert np.all(norms <= aggregator.sensitivity() * (1 + 3e-4))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(memory))
        assert np.all(np.isfinite(record.norm[~record.finite]))
        gone = ~np.asarray(record.finite) & np.isfinite(messages["w"]).all((1, 2))
        assert not np.any(norms[gone])
        for old, new in zip(*map(jax.tree.leaves, (past, memory)), strict=True):
            np.testing.assert_array_equal(np.asarray(old)[gone], np.asarray(new)[gone])
        assert not (before and gone.any())  # clipped, nothing overflows any more
    if name in ("rotated", "sign", "sign, no memory", "drive") and not before:
        assert gone.any()


C1, Z = clipping.clip(1.0), dp.central(1.0)
WRONG = {
    "clip_after_weight": (
        (ONE, C1),
        r"clipping.clip\(1\) comes after weighting.mean; put it before",
    ),
    "two_clips": ((C1, C1), r"clipping.clip\(1\) comes beside clipping.clip\(1\)"),
    "noise_before_weight": (
        (C1, Z, ONE),
        r"weighting.mean comes after dp.central\(1\); put it before",
    ),
    "divided_by_hand": (
        (C1, ONE, Z, weighting.divide(rules.mean(W))),
        r"divided by the expected weight .* is put last by the chain; leave it out",
    ),
    "robust_and_secure": (
        (C1, robust.median(), lattice()),
        r"secure.modular_sum.* comes beside robust.median\(\); keep one",
    ),
    "robust_and_noise": (
        (C1, robust.krum(1), Z),
        r"dp.central\(1\) needs the sensitivity of robust.krum\(attackers=1\); leave",
    ),
    "robust_and_weights": (
        (BY_DATA, robust.median()),
        r"weighting.by_data cannot weight the rows of robust.median\(\); use",
    ),
    "realised_and_noise": (
        (C1, Z),
        r"weighting.mean divides by what .* after dp.central\(1\); use a rule",
    ),
    "capped_and_realised": (
        (C1, weighting.of(rules.capped_data(9.0)), Z),
        r"weighting.capped_data divides by what .* dp.central\(1\); use a rule",
    ),
    "hajek_and_noise": (
        (C1, weighting.of(rules.hajek(np.ones(M), np.full(M, 0.5))), Z),
        r"weighting.hajek divides by what .* who came, after dp.central\(1\); use",
    ),
    "by_data_and_noise": (
        (C1, BY_DATA, Z),
        r"weighting.by_data has no largest weight for dp.central\(1\); use",
    ),
    "by_data_and_local": (
        (C1, BY_DATA, dp.local(1.0)),
        r"weighting.by_data has no largest weight for dp.local\(1\); use",
    ),
    "no_clip": ((Z,), r"dp.central\(1\) needs a bound on .*; put clipping.clip"),
    "compressed_late": (
        (C1, compression.quantise(4), ONE, Z),
        r"compression.quantise\(4\) can raise the norm .* dp.central\(1\); put",
    ),
    "compressed_secure": (
        (C1, compression.sign(), lattice()),
        r"compression.sign\(\) can raise the norm .* secure.modular_sum.*; put",
    ),
    "tracked_again": (
        (C1, compression.sign(), clipping.adaptive(1.0, bit_stddev=1.0)),
        r"clipping.adaptive.* tracks a norm after compression.sign\(\); clip again",
    ),
    "exact_bits": (
        (clipping.adaptive(1.0, bit_stddev=0.0), ONE, Z),
        r"clipping.adaptive.* releases exact bits beside dp.central\(1\); give",
    ),
    "tracked_banded": (
        (
            clipping.adaptive(1.0, bit_stddev=1.0),
            ONE,
            dp.banded(STRATEGY, noise_multiplier=1.0, rounds=3),
        ),
        r"clipping.adaptive.* moves the clip norm under dp.banded.*; use",
    ),
    "tracked_secure": (
        (clipping.adaptive(1.0, bit_stddev=1.0), lattice()),
        r"clipping.adaptive.* moves the clip norm under secure.modular_sum.*; use",
    ),
    "local_secure": (
        (C1, ONE, lattice(), dp.local(1.0)),
        r"dp.local\(1\) would come before the lattice of secure.modular_sum.*; use",
    ),
    "bits_too_dear": (
        (clipping.adaptive(1.0, bit_stddev=0.4), ONE, Z),
        r"noise_multiplier=1.0 must be below 0.8",
    ),
    "not_a_link": ((clipping.clip,), "is not a link; call the factory"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused(name):
    links, expected = WRONG[name]
    with pytest.raises(ValueError, match=expected):
        chain.chain(*links)


def test_messages_of_another_dtype_are_refused():
    aggregator = chain.chain()
    with pytest.raises(ValueError, match=r"message\['w'\].dtype='bfloat16' must be"):
        message = {"w": jnp.zeros(3, jnp.bfloat16)}
        aggregator.client((), message, (), jax.random.key(0))


def test_noise_wants_a_root():
    aggregator = chain.chain(C1, ONE, Z)
    with pytest.raises(ValueError, match=r"must be a trustml.rng.Root"):
        aggregator.init({"w": jnp.zeros(3)})


def test_explain_says_what_a_client_can_add():
    text = chain.chain(clipping.clip(2.0), compression.quantise(4)).explain()
    assert text.splitlines() == [
        "clipping.clip(2): a client adds at most 2 in L2",
        "compression.quantise(4): no bound on what one client adds",
        "weighting.mean: no bound on what one client adds",
        "divided by what arrived of weighting.mean",
    ]
    assert "stddev 1 times that" in chain.chain(C1, ONE, Z).explain()
