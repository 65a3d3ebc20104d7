"""Rounds: one compilation of everything; weights that the chain was not made for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from tests.federated import worlds
from trustml import rng
from trustml.federated import rounds, weighting
from trustml.federated.aggregation import chain, clipping, compression, dp, secure
from trustml.federated.aggregation import weighting as links
from trustml.federated.algorithms import (
    averaging,
    clusters,
    control,
    fair,
    mime,
    personal,
)


def test_weights_or_totals_that_the_noise_is_not_made_for_are_refused():
    rule = weighting.horvitz_thompson(np.ones(4), np.full(4, 0.5))  # weights of 1/2
    algorithm = averaging.fedavg(worlds.loss, optax.sgd(0.1), optax.sgd(1.0))
    aggregator = chain.chain(clipping.clip(1.0), links.of(rule), dp.central(1.0))
    settings = rounds.Settings(jit=jax.jit, lanes=1, batch_size=5, capacity=4)
    made = rounds.make(algorithm, aggregator, population=4, settings=settings)
    state = made.init(worlds.make([5] * 4).params, rng.root(0))
    later = rounds.Chosen(np.arange(4), np.full(4, 5), np.full(4, 0.6), 1.0)
    silent = rounds.Chosen(np.arange(4), np.full(4, 5), np.full(4, 0.5))
    for chosen, said in (
        (later, r"weights=0.6 must be at most 0.5, which the noise is made for"),
        (silent, r"total=None says nothing of what divides by horvitz_thompson; give"),
    ):
        with pytest.raises(ValueError, match=said):
            made.run(state, jax.random.key(0), chosen, None)


def _round(weight, total=None, aggregator=None):
    rule = weighting.Weighting("odd", lambda c, n: np.full(len(c), weight), total, 1.0)
    algorithm = averaging.fedavg(worlds.loss, optax.sgd(0.1), optax.sgd(1.0))
    settings = rounds.Settings(jit=jax.jit, lanes=1, batch_size=5, capacity=4)
    made = rounds.make(
        algorithm,
        aggregator or chain.chain(links.of(rule)),
        population=4,
        settings=settings,
    )
    state = made.init(worlds.make([5] * 4).params, rng.root(0))
    chosen = rounds.Chosen(np.arange(4), np.full(4, 5), np.full(4, weight), total)
    return made.run(state, jax.random.key(0), chosen, None)


@pytest.mark.parametrize("weight", [-50.0, np.nan, np.inf])
@pytest.mark.parametrize("private", [True, False], ids=["private", "not"])
def test_weights_that_are_no_weights_are_refused(weight, private):
    # -50 once passed the bound of the noise, and moved the model by 40 sensitivities.
    aggregator = None
    if private:
        rule = weighting.mean(4)
        aggregator = chain.chain(clipping.clip(1.0), links.of(rule), dp.central(1.0))
    with pytest.raises(ValueError, match=r"weights\[0\]=.* must be finite and >= 0; 0"):
        _round(weight, 4.0 if private else None, aggregator)


def test_weights_of_zero_for_everybody_are_refused():
    with pytest.raises(
        ValueError, match="weights=0.0 of rule 'odd' are zero for all 4"
    ):
        _round(0.0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"numbers": np.array([0, 1, 2, 4])}, "numbers=4 is none of the 4 clients"),
        ({"numbers": np.array([0, 1, 1, 2])}, "holds a client twice, and the noise"),
        ({"weights": np.ones(1)}, r"weights='array of shape \(1,\)' must be one for"),
        ({"sizes": np.full(3, 5)}, r"sizes='array of shape \(3,\)' must be one for"),
    ],
)
def test_cohorts_that_are_none_are_refused(changed, said):
    links_ = clipping.clip(1.0), links.of(weighting.mean(4)), dp.central(1.0)
    algorithm = averaging.fedavg(worlds.loss, optax.sgd(0.1), optax.sgd(1.0))
    settings = rounds.Settings(jit=jax.jit, lanes=1, batch_size=5, capacity=4)
    made = rounds.make(algorithm, chain.chain(*links_), population=4, settings=settings)
    state = made.init(worlds.make([5] * 4).params, rng.root(0))
    chosen = rounds.Chosen(np.arange(4), np.full(4, 5), np.ones(4), 4.0)
    with pytest.raises(ValueError, match=said):
        made.run(state, jax.random.key(0), chosen._replace(**changed), None)


@pytest.mark.parametrize(
    "algorithm",
    [
        mime.mime(worlds.loss, optax.sgd(0.1), optax.sgd(1.0)),
        fair.afl(
            worlds.loss,
            optax.sgd(0.1),
            optax.sgd(1.0),
            domains=np.arange(4),
            learning_rate=0.1,
        ),
        control.scaffold(worlds.loss, learning_rate=0.1, server=optax.sgd(1.0)),
        control.fednova(worlds.loss, learning_rate=0.1, server=optax.sgd(1.0)),
        control.feddyn(worlds.loss, optax.sgd(0.1), alpha=0.1),
        clusters.ifca(worlds.loss, optax.sgd(0.1), optax.sgd(1.0), models=2),
    ],
    ids=["mime", "afl", "scaffold", "fednova", "feddyn", "ifca"],
)
def test_noise_covers_all_that_the_server_is_told(algorithm):
    links_ = clipping.clip(1.0), links.of(weighting.mean(4)), dp.central(1.0)
    settings = rounds.Settings(jit=jax.jit, lanes=1, batch_size=5, capacity=4)
    with pytest.raises(ValueError, match="exact .*, which a chain with noise does not"):
        rounds.make(algorithm, chain.chain(*links_), population=4, settings=settings)
    rounds.make(algorithm, chain.chain(), population=4, settings=settings)


def _displaced(exact, aggregator, size):
    """How far one client, pulling at all coordinates alike, moves a model from 0."""

    def loss(params, row, key):
        del key
        return -jnp.vdot(params, row["x"])

    made = rounds.make(
        averaging.fedavg(loss, optax.sgd(1.0), optax.sgd(1.0)),
        aggregator,
        population=1,
        settings=rounds.Settings(
            jit=jax.jit,
            lanes=1,
            batch_size=1,
            capacity=1,
            group=1,
            exact=exact,
            devices=jax.devices()[:1],
        ),
    )
    chosen = rounds.Chosen(np.arange(1), np.ones(1, int), np.ones(1), 1.0)
    rows = {"x": jnp.ones((1, size))}
    state, _ = made.run(
        made.init(jnp.zeros(size), rng.root(0)),
        jax.random.key(0),
        chosen,
        lambda handed: (rows, np.zeros(handed.sum(), np.int32)),
    )
    return float(np.linalg.norm(np.asarray(state.server.params, np.float64)))


def test_exact_sums_would_move_by_more_than_declared_and_get_no_noise():
    size = 10_000
    # Each coordinate of a clipped message is 0.501 gamma, and rounds to gamma.
    most = 0.501 * rounds.Settings(jax.jit, 1, 1, 1).gamma * size**0.5
    parts = clipping.clip(most), links.of(weighting.mean(1))
    assert _displaced(False, chain.chain(*parts), size) <= most * (1 + 1e-4)
    assert _displaced(True, chain.chain(*parts), size) > 1.9 * most
    noisy = chain.chain(*parts, dp.central(1.0))
    with pytest.raises(ValueError, match=r"federated.exact=True .*; set it to False"):
        _displaced(True, noisy, size)


def test_exact_rounds_take_noise_where_the_sum_is_made_elsewhere():
    size = 16
    parts = (
        clipping.clip(1.0),
        links.of(weighting.mean(1)),
        secure.modular_sum(2.0**-16, max_clients=4, size=size),
        dp.discrete(1e-3, size=size),
    )
    assert 0.9 < _displaced(True, chain.chain(*parts), size) < 1.1


def test_clients_without_examples_are_neither_dropouts_nor_counted():
    world = worlds.make([5, 0] * 4)
    size = sum(leaf.size for leaf in jax.tree.leaves(world.params))
    lattice = secure.modular_sum(2.0**-20, max_clients=8, size=size)
    counting = averaging.fedavg(worlds.loss, optax.sgd(0.1), optax.sgd(1.0))

    def server(state, gathered):
        clients = gathered.clients.astype(jnp.int32)
        return counting.server(state, gathered)._replace(round=clients)

    arrived = np.arange(8) != 2  # one of the four with examples is not heard
    models = []
    for parts in ((clipping.clip(1.0),), (clipping.clip(1.0), lattice)):
        made = rounds.make(
            counting._replace(server=server),
            chain.chain(*parts),
            population=8,
            settings=rounds.Settings(
                jit=jax.jit,
                lanes=2,
                batch_size=5,
                capacity=8,
                devices=jax.devices()[:1],
            ),
        )
        state, info = made.run(
            made.init(world.params, rng.root(0)),
            jax.random.key(0),
            rounds.Chosen(np.arange(8), world.sizes, np.ones(8), arrived=arrived),
            lambda _: (jax.tree.map(jnp.asarray, world.data), np.arange(20)),
        )
        assert not bool(info.aggregate.aborted)
        assert int(state.server.round) == 3
        models.append(state.server.params)
    # Rounding to 2^-20 moves each of three messages by half of that.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2.0**-20), *models)


SGD, ONE = optax.sgd(0.3), optax.sgd(1.0)
PERSONAL = {
    "ditto": lambda: personal.ditto(worlds.loss, SGD, ONE, pull=0.5),
    "pfedme": lambda: personal.pfedme(
        worlds.loss, ONE, learning_rate=0.1, inner_learning_rate=0.3, pull=1.0
    ),
    "fedrep": lambda: personal.fedrep(
        worlds.loss, SGD, ONE, is_head=lambda p: "head" in p
    ),
    "apfl": lambda: personal.apfl(worlds.loss, ONE, learning_rate=0.3),
}
WITH_MESSAGES = {
    "scaffold": lambda: control.scaffold(worlds.loss, learning_rate=0.3, server=ONE),
    "feddyn": lambda: control.feddyn(worlds.loss, SGD, alpha=0.5),
}


@pytest.mark.parametrize("name", [*PERSONAL, *WITH_MESSAGES])
def test_who_is_not_heard_keeps_what_is_personal_and_nothing_else(name):
    world = worlds.make(np.full(4, 10))
    algorithm = {**PERSONAL, **WITH_MESSAGES}[name]()
    made = rounds.make(
        algorithm,
        chain.chain(compression.top_k(0.2)),
        population=5,
        settings=rounds.Settings(
            jit=jax.jit, lanes=1, batch_size=5, capacity=8, devices=jax.devices()[:1]
        ),
    )
    begun = made.init(world.params)
    fresh = jax.tree.map(np.copy, begun.memory)
    # Client 2 is not heard, 3 has nothing to train on, 4 is not asked.
    sizes, arrived = np.array([10, 10, 10, 0]), np.array([True, True, False, True])
    state, _ = made.run(
        begun,
        jax.random.key(0),
        rounds.Chosen(np.arange(4), sizes, np.ones(4), arrived=arrived),
        lambda handed: (jax.tree.map(jnp.asarray, world.data), np.arange(30)),
    )
    moved = [
        np.any(
            [
                (new != old).reshape(5, -1).any(1)
                for new, old in zip(
                    jax.tree.leaves(part), jax.tree.leaves(before), strict=True
                )
            ],
            axis=0,
        ).tolist()
        for part, before in zip(state.memory, fresh, strict=True)
    ]
    own = name in PERSONAL
    assert algorithm.personal_memory == own == (algorithm.personal is not None)
    assert moved == [[True, True, own, False, False], [True, True] + [False] * 3]


@pytest.mark.parametrize(
    ("cohort", "clients", "lanes", "places"),
    [
        (20, 400, 1, 128),
        (20, 10, 1, 16),
        (1, 1, 8, 8),
        (0, 0, 1, 1),
        (200, 1e7, 16, 512),
    ],
)
def test_a_cohort_finds_its_place(cohort, clients, lanes, places):
    found = rounds.capacity(cohort, int(clients), lanes=lanes)
    assert found == places
    # Poisson counts beyond it: fewer than one in 10^9.
    assert clients <= found or stats.poisson.sf(found, cohort) < 1e-9


@pytest.mark.parametrize("window", [64, 1])
def test_the_second_round_compiles_nothing(window):
    world = worlds.make(np.full(8, 10))
    made = rounds.make(
        averaging.fedavg(worlds.loss, optax.sgd(0.1), optax.sgd(1.0)),
        chain.chain(links.of(weighting.by_data())),
        population=8,
        settings=rounds.Settings(
            jit=jax.jit,
            lanes=4,
            batch_size=5,
            capacity=8,
            window=window,
            devices=jax.devices()[:1],
        ),
    )
    data = jax.tree.map(jnp.asarray, world.data)
    state = made.init(world.params)
    with worlds.compilations() as compiled:
        for number in range(3):
            chosen = rounds.Chosen(np.arange(8), world.sizes, np.ones(8))
            key = jax.random.key(number)
            state, _ = made.run(state, key, chosen, lambda _: (data, np.arange(80)))
            if number == 1:  # as a checkpoint hands it back: on no device
                state = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), state)
    names = [f"jit({name})" for name in ("announce", "begin", "run", "end", "finish")]
    assert {name: compiled[name] for name in names} == dict.fromkeys(names, 1)
