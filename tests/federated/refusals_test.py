"""Exact sums: what cannot be had, what does not underflow, and clamps that are told."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.federated import worlds
from trustml import parallel
from trustml.federated import refusals, rounds, weighting
from trustml.federated.aggregation import (
    chain,
    clipping,
    compression,
    robust,
    secure,
)
from trustml.federated.aggregation import weighting as links
from trustml.federated.algorithms import (
    averaging,
    buffered,
    clusters,
    control,
    fair,
    mime,
)

SGD, ONE = optax.sgd(0.1), optax.sgd(1.0)
FEDAVG = averaging.fedavg(worlds.loss, SGD, ONE)


def linear(params, example, key):
    """A loss of constant gradient."""
    del key
    return jnp.vdot(params, example["x"])


def make(algorithm, *parts, population=8, devices=1, **settings):
    return rounds.make(
        algorithm,
        chain.chain(*parts),
        population=population,
        settings=rounds.Settings(
            jit=jax.jit,
            batch_size=5,
            capacity=8,
            group=1,
            devices=jax.devices()[:devices],
            **{"lanes": 2, "exact": True, **settings},
        ),
    )


ORDERED = {
    "trimmed_mean": robust.trimmed_mean(0.2),
    "krum": robust.krum(1),
    "multi_krum": robust.multi_krum(1),
    "bulyan": robust.bulyan(1),
    "norm_bound": robust.norm_bound(),
}


@pytest.mark.parametrize("name", ORDERED)
def test_rules_that_follow_the_order_of_rows_are_not_exact(name):
    said = (
        rf"federated.exact=True promises .* robust.{name}\(.*\) follow; set it to False"
    )
    with pytest.raises(ValueError, match=said):
        make(FEDAVG, ORDERED[name])
    make(FEDAVG, ORDERED[name], exact=False)


@pytest.mark.parametrize("q", [0.0, 2.0])
def test_messages_without_a_bound_are_not_exact(q):
    qffl = fair.qffl(worlds.loss, learning_rate=0.1, q=q)
    said = (
        "federated.exact=True sums .* hold 2048 over all clients, .* powers of losses"
    )
    with pytest.raises(ValueError, match=said):
        make(qffl)
    make(qffl, exact=False)


FAIR = {
    "scaffold": control.scaffold(worlds.loss, learning_rate=0.1, server=ONE),
    "feddyn": control.feddyn(worlds.loss, SGD, alpha=0.1),
    "qffl": fair.qffl(worlds.loss, learning_rate=0.1, q=1.0),
}


@pytest.mark.parametrize("name", FAIR)
@pytest.mark.parametrize(
    "rule", [weighting.by_data(), weighting.mean(4)], ids=["by data", "constant"]
)
def test_control_variates_need_the_mean_of_those_heard(name, rule):
    # With weights, or over a constant, c of SCAFFOLD moves by another sum than that of
    # the clients' changes, and it rests beside the minimiser.
    said = rf"weights='{rule.name}.*weighting.mean\(\)"
    with pytest.raises(ValueError, match=said):
        make(FAIR[name], links.of(rule), exact=False)
    make(FAIR[name], links.of(weighting.mean()), exact=False)


BESIDE = {
    "fednova": control.fednova(worlds.loss, learning_rate=0.1, server=ONE),
    "qffl": FAIR["qffl"],
    "afl": fair.afl(worlds.loss, SGD, ONE, domains=np.arange(8), learning_rate=0.1),
    "ifca": clusters.ifca(worlds.loss, SGD, ONE, models=2),
}
BENT = {
    "sign": compression.sign(),
    "quantised": compression.quantise(4),
    "top k": compression.top_k(0.3),
    "clipped": clipping.clip(1.0),
    "median": robust.median(),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("bent", BENT)
def test_what_takes_a_message_for_one_vector_refuses_figures_beside_it(name, bent):
    with pytest.raises(ValueError, match="takes a message for one direction"):
        make(BESIDE[name], BENT[bent], exact=False)
    make(BESIDE[name], exact=False)
    make(FEDAVG, BENT[bent], exact=False)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
@pytest.mark.parametrize("bent", ["clipped", "median"])
def test_what_clients_remember_in_full_is_not_cut_on_the_way(name, bent):
    # Clipped for a while, SCAFFOLD and FedDyn rested far from the minimiser for ever.
    with pytest.raises(ValueError, match="takes of messages what clients remember"):
        make(FAIR[name], BENT[bent], exact=False)
    make(FAIR[name], BENT["top k"], exact=False)


def test_weights_above_those_of_a_lattice():
    rule, later = (
        weighting.horvitz_thompson(np.ones(8), np.full(8, p)) for p in (0.5, 0.1)
    )
    parts = clipping.clip(0.1), links.of(rule)
    lattice = secure.modular_sum(2.0**-16, max_clients=16, size=3)
    for found in (parts, (*parts, lattice)):
        aggregator = chain.chain(*found)
        who = np.arange(8)
        chosen = rounds.Chosen(who, np.ones(8, int), later.of(who, None), 1.0)
        if len(found) == 2:
            refusals.divisor(aggregator, chosen, chosen.weights)
            continue
        with pytest.raises(ValueError, match="which the secure sum is made for"):
            refusals.divisor(aggregator, chosen, chosen.weights)


def test_a_cohort_of_those_whom_the_rule_gives_nothing():
    chosen = rounds.Chosen(np.arange(2), np.ones(2, int), np.zeros(2))
    rule = weighting.hajek(np.array([0.0, 0.0, 1.0]), np.full(3, 1 / 3))
    kind = chain.chain(links.of(rule))
    assert refusals.divisor(kind, chosen, chosen.weights) == 1.0
    with pytest.raises(ValueError, match="are zero for all 2 clients"):
        refusals.divisor(chain.chain(), chosen, chosen.weights)


@pytest.mark.parametrize(
    "changed",
    [
        {"numbers": np.array([0.0, 1.7])},
        {"sizes": np.array([1, -1])},
        {"sizes": np.array([1.0, 2.5])},
    ],
)
def test_numbers_and_sizes_are_whole(changed):
    chosen = rounds.Chosen(np.arange(2), np.ones(2, int), np.ones(2))
    with pytest.raises(ValueError, match=f"{[*changed][0]}=.* integers >= 0"):
        refusals.check_cohort(chosen._replace(**changed), population=8, private=False)


@pytest.mark.parametrize(
    ("domains", "said"),
    [
        (np.arange(3), "=3 is not the 8 clients"),
        (np.arange(9), "=9 is not the 8 clients"),
        (np.array([-1, 0, 1]), "one number >= 0 for each client"),
    ],
)
def test_domains_are_one_for_each_client(domains, said):
    with pytest.raises(ValueError, match=said):
        make(fair.afl(worlds.loss, SGD, ONE, domains=domains, learning_rate=0.1))


def test_a_client_with_a_memory_comes_once():
    made = make(FAIR["scaffold"], population=8)
    cohort = rounds.Chosen(np.array([0, 0, 1]), np.ones(3, int), np.ones(3))
    with pytest.raises(ValueError, match="twice, and there is one memory of each"):
        made.run(made.init({"w": jnp.zeros(3)}), jax.random.key(0), cohort, None)


def test_lengths_of_paths_fit_exact_mode():
    # 8 clients of 400 steps: 3,200, where integers held 2,048 over the cohort.
    found = []
    for exact in (False, True):
        algorithm = control.fednova(linear, learning_rate=1e-3, server=ONE)
        made = make(algorithm, exact=exact, steps=400)
        state, info = made.run(
            made.init(jnp.zeros(3)),
            jax.random.key(0),
            rounds.Chosen(np.arange(8), np.full(8, 5), np.ones(8)),
            lambda handed: ({"x": jnp.ones((8, 3))}, np.repeat(range(8), handed)),
        )
        assert int(info.clamped) == 0
        found.append(np.asarray(state.server.params))
    np.testing.assert_allclose(*found, rtol=1e-3)


@pytest.mark.parametrize("staleness", [-1, 2, 7])
def test_versions_that_are_gone_are_no_messages(staleness):
    algorithm = buffered.fedbuff(linear, SGD, ONE, versions=2)
    made = make(algorithm, exact=False)
    given = np.array([0, 1, staleness], np.int32)
    state, info = made.run(
        made.init(jnp.zeros(3)),
        jax.random.key(0),
        rounds.Chosen(np.arange(3), np.ones(3, int), np.ones(3), given=given),
        lambda handed: ({"x": jnp.ones((3, 3))}, np.repeat(range(3), handed)),
    )
    assert info.records().aggregator.finite.tolist() == [True, True, False]
    expected = -0.1 * (1 + 1 / np.sqrt(2)) / 3
    np.testing.assert_allclose(state.server.params, expected, rtol=1e-5)


def test_clamps_of_the_first_sweep_are_told():
    # Gradients of 3000 do not fit 2048 / 4 of a client; changes of 3000 * 1e-5 do.
    made = make(mime.mime(linear, optax.sgd(1e-5), ONE), population=4)
    _, info = made.run(
        made.init(jnp.zeros(3)),
        jax.random.key(0),
        rounds.Chosen(np.arange(4), np.ones(4, int), np.ones(4)),
        lambda handed: ({"x": jnp.full((4, 3), 3e3)}, np.repeat(range(4), handed)),
    )
    assert int(info.clamped) == 4 * 3


def test_afl_of_many_domains_is_the_same_in_integers():
    # lambda is about 1 / 20,000, or 52 steps of gamma: messages of lambda (y - x) were
    # wrong by a quarter.
    many = 20_000
    pulls = np.random.default_rng(0).normal(size=(8, 50)).astype(np.float32)
    found = []
    for exact in (False, True):
        algorithm = fair.afl(
            linear, SGD, ONE, domains=np.arange(many), learning_rate=1e-6
        )
        made = make(algorithm, population=many, exact=exact)
        state, info = made.run(
            made.init(jnp.zeros(50)),
            jax.random.key(0),
            rounds.Chosen(np.arange(8) * 2000, np.ones(8, int), np.ones(8)),
            lambda handed: ({"x": jnp.asarray(pulls)}, np.repeat(range(8), handed)),
        )
        assert int(info.clamped) == 0
        found.append(np.asarray(state.server.params))
    # Eight messages, each wrong by half a gamma at most, over weights of about 8.
    np.testing.assert_allclose(*found, rtol=1e-5, atol=2.0**-20)


EXACT = {
    "weights of a tenth, in both sweeps": (
        mime.mime(worlds.loss, SGD, ONE),
        [links.of(weighting.capped_data(10.0))],
    ),
    "losses of a domain": (
        fair.afl(worlds.loss, SGD, ONE, domains=np.arange(8) % 2, learning_rate=1.0),
        [],
    ),
    "median": (FEDAVG, [robust.median()]),
}


@pytest.mark.parametrize("name", EXACT)
def test_neither_order_nor_devices_show(name):
    algorithm, parts = EXACT[name]
    world = worlds.make([7, 1, 2, 9, 3, 6, 4, 8])
    rule = chain.chain(*parts).rule
    found = []
    mixed = np.array([3, 1, 7, 0, 6, 2, 5, 4])
    one, two = (make(algorithm, *parts, devices=devices) for devices in (1, 2))
    for made, devices, order in (
        (one, 1, mixed),
        (one, 1, mixed[::-1]),
        (two, 2, mixed),
    ):
        held = jax.tree.map(jnp.asarray, world.data)
        if devices > 1:
            held = parallel.replicate(held, jax.devices()[:devices])

        def place(handed, order=order, held=held):
            index = [world.offsets[k] + np.arange(world.sizes[k]) for k in order]
            return held, np.concatenate(index)

        sizes = world.sizes[order]
        chosen = rounds.Chosen(order, sizes, rule.of(order, sizes))
        state = made.init(world.params)
        for number in range(2):
            state, _ = made.run(state, jax.random.key(number), chosen, place)
        leaves = jax.tree.leaves(state.server)
        found.append(b"".join(np.asarray(leaf).tobytes() for leaf in leaves))
    assert found[1:] == found[:1] * 2
