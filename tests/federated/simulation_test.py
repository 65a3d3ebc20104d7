"""The iterator: it learns, and private rounds go with the promise of the selector."""

import dp_accounting
import jax
import numpy as np
import optax
import pytest

from tests.federated import worlds
from trustml import rng
from trustml.federated import (
    quotas,
    selection,
    simulation,
    store,
    user_privacy,
    utility,
    weighting,
)
from trustml.federated.aggregation import chain, clipping, dp
from trustml.federated.aggregation import weighting as links
from trustml.federated.algorithms import averaging, buffered, control
from trustml.privacy import correlated_noise


def held(world):
    owners = np.repeat(np.arange(len(world.sizes)), world.sizes)
    keys = np.arange(len(world.sizes))
    return store.from_arrays(world.data, owners, client_keys=keys)


ONE = optax.sgd(1.0)
FEDAVG = averaging.fedavg(worlds.loss, optax.sgd(0.3), ONE)


def rounds_of(world, selector, count=5, algorithm=FEDAVG, **settings):
    return list(
        simulation.run(
            world.params,
            held(world),
            algorithm,
            selector,
            rounds=count,
            batch_size=5,
            jit=jax.jit,
            lanes=1,
            devices=jax.devices()[:1],
            **settings,
        )
    )


def test_it_learns_and_repeats_itself():
    world = worlds.make()
    runs = [rounds_of(world, selection.uniform(5, seed=1)) for _ in range(2)]
    losses = [info.records().algorithm.loss.mean() for _, _, info in runs[0]]
    assert losses[-1] < losses[0]
    final = [run[-1][1].server.params for run in runs]
    jax.tree.map(np.testing.assert_array_equal, *final)


SCAFFOLD = control.scaffold(worlds.loss, learning_rate=0.3, server=optax.sgd(1.0))


def test_a_second_call_goes_on_and_leaves_the_state_as_it_was():
    world, selector = worlds.make(), selection.uniform(3, seed=2)
    whole = rounds_of(world, selector, 4, algorithm=SCAFFOLD)
    half = rounds_of(world, selector, 2, algorithm=SCAFFOLD)[-1][1]
    for _ in range(2):
        rest = rounds_of(world, selector, 4, algorithm=SCAFFOLD, state=half)
        assert [number for number, _, _ in rest] == [2, 3]
        jax.tree.map(np.testing.assert_array_equal, rest[-1][1], whole[-1][1])


def test_a_promise_is_for_one_call():
    world, selector = worlds.make(), selection.uniform(3.0, seed=2)
    settings = {"aggregator": private(weighting.mean(3.0)), "noise": rng.root(0)}
    half = rounds_of(world, selector, 2, **settings)[-1][1]
    with pytest.raises(ValueError, match="round 2' goes on, and the promise is for"):
        rounds_of(world, selector, 4, state=half, **settings)
    for listening in (False, True):
        chosen = utility.oort(3, seed=0) if listening else selector
        said = "what oort heard" if listening else "rounds=2 must be >= 3"
        with pytest.raises(ValueError, match=said):
            rounds_of(world, chosen, 2 + listening, state=half)


def test_a_promise_of_discrete_noise_is_by_rdp_where_none_is_named():
    rule = weighting.mean(3.0)
    parts = clipping.clip(1.0), links.of(rule), dp.discrete(2.0, size=8)
    asked = held(worlds.make()), selection.uniform(3.0, seed=0), chain.chain(*parts)
    found = simulation.promise(*asked, rounds=4, delta=1e-3)
    assert found.accountant == "rdp" and 0 < found.epsilon_as_run < np.inf


@pytest.mark.parametrize("most", [-3, 0])
def test_examples_of_a_client_are_one_or_more(most):
    with pytest.raises(ValueError, match=f"max_examples={most}"):
        rounds_of(worlds.make(), selection.uniform(5, seed=1), max_examples=most)


def test_a_trace_has_room_for_its_largest_cohort():
    rows = {"x": np.ones((200, 1), np.float32)}
    trace = quotas.trace([[0], [1], list(range(150))])
    made = simulation.run(
        np.zeros(1, np.float32),
        store.from_arrays(rows, np.arange(200)),
        averaging.fedavg(
            lambda p, row, key: ((p - row["x"]) ** 2).sum(), optax.sgd(0.1), ONE
        ),
        trace,
        rounds=3,
        batch_size=1,
        jit=jax.jit,
        lanes=1,
        narrowing=False,
        devices=jax.devices()[:1],
    )
    assert [len(info.steps) for _, _, info in made] == [1, 1, 150]


@pytest.mark.parametrize("make", [utility.power_of_choice, utility.oort])
def test_clients_without_a_number_are_asked_last(make):
    world = worlds.make()
    world.data["x"][: world.sizes[0]] = np.nan
    options = {"candidates": len(world.sizes)} if "power" in make.__name__ else {}
    made = rounds_of(world, make(1, seed=0, **options), 3 * len(world.sizes))
    asked = [info.records().aggregator.finite.all() for _, _, info in made]
    assert asked.count(False) == 1


def test_a_capacity_of_ones_own():
    world, selector = worlds.make(), selection.uniform(5, seed=1)
    ((_, one, _),) = rounds_of(world, selector, 1)
    ((_, other, _),) = rounds_of(world, selector, 1, capacity=64)
    jax.tree.map(np.testing.assert_array_equal, one.server.params, other.server.params)


def test_a_weight_for_every_client():
    target = weighting.horvitz_thompson(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="has no weight for client"):
        rounds_of(worlds.make(), selection.uniform(5, seed=1), 1, weights=target)


def test_staleness_is_no_matter_of_a_simulation():
    algorithm = buffered.fedbuff(
        worlds.loss, optax.sgd(0.1), optax.sgd(1.0), versions=2
    )
    with pytest.raises(ValueError, match=r"staleness of FedBuff.*Chosen.given"):
        simulation.run(
            worlds.make().params,
            held(worlds.make()),
            algorithm,
            selection.uniform(5, seed=1),
            rounds=1,
            batch_size=5,
            jit=jax.jit,
        )


def test_an_empty_cohort_gets_its_noise():
    world = worlds.make()
    nobody = selection.poisson(selection.probabilities.uniform(), 1e-9, seed=0)
    rule = weighting.mean(1.0)
    aggregator = chain.chain(clipping.clip(1.0), links.of(rule), dp.central(1.0))
    ((_, state, info),) = rounds_of(
        world, nobody, 1, aggregator=aggregator, noise=rng.root(0)
    )
    assert info.steps.size == 0
    moved = [
        np.asarray(a - b).ravel()
        for a, b in zip(
            jax.tree.leaves(state.server.params),
            jax.tree.leaves(world.params),
            strict=True,
        )
    ]
    noise = np.concatenate(moved)
    # 38 coordinates of variance 1: their mean square is within 4.5 deviations of 1.
    assert abs(np.square(noise).sum() / noise.size - 1) < 4.5 * np.sqrt(2 / noise.size)


def test_rounds_are_counted():
    with pytest.raises(ValueError, match="rounds=0"):
        rounds_of(worlds.make(), selection.uniform(5, seed=1), 0)


def private(rule=None):
    """A chain with noise for cohorts of 5."""
    return chain.chain(
        clipping.clip(1.0), links.of(rule or weighting.mean(5)), dp.central(2.0)
    )


def banded(rounds):
    strategy = correlated_noise.optimize(rounds, bands=2)
    return chain.chain(
        clipping.clip(1.0),
        links.of(weighting.mean(2)),
        dp.banded(strategy, noise_multiplier=2.0, rounds=rounds),
    )


REFUSED = {
    "listens to losses": (
        selection.uniform(5, seed=0)._replace(
            event=lambda *_: selection.NoEvent("losses select")
        ),
        {"aggregator": private()},
        "has no guarantee: losses select",
    ),
    "more rounds than the noise is for": (
        selection.cyclic(2, bands=2, seed=0),
        {"aggregator": banded(4)},
        "rounds=5 exceeds the 4 rounds that the noise is made for",
    ),
    "back too soon": (
        selection.uniform(2, seed=0),
        {"aggregator": banded(8)},
        r"selection='poisson' may ask a client again after 1 round\(s\); the noise is "
        "for 2; use selection.cyclic",
    ),
    "weights beside a chain": (
        selection.uniform(5, seed=0),
        {"aggregator": private(), "weights": weighting.by_data()},
        "weights='by_data' has no effect on an aggregator",
    ),
    "no such setting": (
        selection.uniform(5, seed=0),
        {"batchsize": 3},
        "settings='batchsize' is none of jit, lanes, batch_size",
    ),
    "no epoch": (
        selection.uniform(5),
        {"epochs": 0},
        "federated.epochs=0 must be >= 1",
    ),
    "steps backwards": (selection.uniform(5), {"steps": -1}, "federated.steps=-1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_when_called(name):
    selector, settings, words = REFUSED[name]
    world = worlds.make()
    algorithm = averaging.fedavg(worlds.loss, optax.sgd(0.3), optax.sgd(1.0))
    with pytest.raises(ValueError, match=words):
        simulation.run(  # not yet iterated
            world.params,
            held(world),
            algorithm,
            selector,
            rounds=5,
            batch_size=5,
            jit=jax.jit,
            **settings,
        )


def test_a_person_with_several_clients_is_not_promised_anything():
    world = worlds.make()
    owners = np.repeat(np.arange(len(world.sizes)), world.sizes)
    shared = store.from_arrays(world.data, owners, user=owners % 2)
    with pytest.raises(ValueError, match="owns several of the"):
        simulation.promise(
            shared, selection.uniform(5, seed=0), private(), rounds=3, delta=1e-3
        )


def test_the_promise_is_that_of_sampler_and_noise():
    world = worlds.make()
    selector = selection.uniform(5, seed=0)
    made = simulation.promise(held(world), selector, private(), rounds=3, delta=1e-3)
    state = selector.init(world.sizes)
    expected = user_privacy.account(selector.event(state, 2.0, 3), delta=1e-3)
    assert made.epsilon_as_run == pytest.approx(expected.epsilon_as_run)
    with pytest.raises(ValueError, match="adds no noise and promises nothing"):
        simulation.promise(held(world), selector, chain.chain(), rounds=3, delta=1e-3)
    # Noise over all rounds is one Gaussian release, whatever the cohorts.
    turns = selection.cyclic(2, bands=2, seed=0)
    once = simulation.promise(held(world), turns, banded(4), rounds=4, delta=1e-3)
    pld = dp_accounting.pld.PLDAccountant(
        dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    )
    wanted = pld.compose(dp_accounting.GaussianDpEvent(2.0)).get_epsilon(1e-3)
    assert once.epsilon_as_run == pytest.approx(wanted, rel=1e-4)
