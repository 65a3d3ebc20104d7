"""Rounds in which something is missing: voices, steps, numbers, a quorum.

One program of each algorithm goes through all of it, on six quadratic clients

    f_k(y) = |y - b_k|^2 / 2
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trustml import parallel, rng
from trustml.federated import rounds
from trustml.federated.aggregation import chain, clipping, compression, robust, secure
from trustml.federated.algorithms import (
    averaging,
    clusters,
    control,
    fair,
    mime,
    personal,
)

K, D, BAD = 6, 3, 2
SGD, ONE = optax.sgd(0.25), optax.sgd(1.0)
ALL, NONE = np.ones(K, bool), np.zeros(K, bool)
CENTRES = np.random.default_rng(0).normal(size=(K, D)).astype(np.float32)
WITHOUT = np.arange(K) != BAD  # a client whose data are no numbers


def loss(params, example, key):
    del key
    return jnp.square(params - example["b"]).sum() / 2


def warm_up(round_):
    """A rate of 0 in round 0."""
    return jnp.minimum(round_.astype(jnp.float32), 1)


ALGORITHMS = {
    "qffl": functools.partial(fair.qffl, loss, learning_rate=0.25, q=1.0),
    "afl": functools.partial(
        fair.afl, loss, SGD, ONE, domains=np.arange(K), learning_rate=0.1
    ),
    "mimelite": functools.partial(
        mime.mime, loss, optax.sgd(0.25, momentum=0.9), ONE, lite=True
    ),
    "ifca": functools.partial(clusters.ifca, loss, SGD, ONE, models=2),
    "scaffold": functools.partial(
        control.scaffold, loss, learning_rate=0.25, server=ONE
    ),
    "fednova": functools.partial(
        control.fednova, loss, learning_rate=0.25, server=ONE, prox=0.5
    ),
    "feddyn": functools.partial(control.feddyn, loss, SGD, alpha=1.0),
}
DITTO = functools.partial(personal.ditto, loss, SGD, ONE, pull=0.5)
MODELS = np.stack([np.zeros(D), np.full(D, 5)]).astype(np.float32)  # of IFCA


class Federation:
    """Rounds of an algorithm in which clients make two steps with one example."""

    def __init__(self, algorithm, *links, devices=1, **settings):
        self.devices = jax.devices()[:devices]
        self.made = rounds.make(
            algorithm,
            chain.chain(*links),
            population=K,
            settings=rounds.Settings(
                jit=jax.jit,
                batch_size=1,
                capacity=8,
                epochs=2,
                devices=self.devices,
                lanes=2,
                narrowing=False,
                **settings,
            ),
        )

    def start(self, params=None):
        params = jnp.zeros(D) if params is None else jnp.asarray(params)
        return self.made.init(params, rng.root(0))

    def run(self, state, arrived=ALL, *, centres=CENTRES, order=None, key=0):
        """A round; memories of `state` are copied, and stay as they are."""
        state = state._replace(memory=jax.tree.map(np.copy, state.memory))
        order = np.arange(K) if order is None else order
        data = {"b": jnp.asarray(centres)}
        if len(self.devices) > 1:
            data = parallel.replicate(data, self.devices)
        chosen = rounds.Chosen(
            order, np.ones(K, int), np.ones(K), arrived=arrived[order]
        )
        return self.made.run(
            state,
            jax.random.key(key),
            chosen,
            lambda handed: (data, np.repeat(order, handed)),
        )


@functools.cache
def federation(name):
    return Federation(ALGORITHMS[name](schedule=warm_up))


@functools.cache
def after_two_rounds(name):
    """State after a round without a step and one with, and what the first was like."""
    start = federation(name).start(MODELS if name == "ifca" else None)
    first, info = federation(name).run(start)
    return start, first, federation(name).run(first)[0], info


def with_nan(rows):
    out = CENTRES.copy()
    out[rows] = np.nan
    return out


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_rate_of_0_moves_nothing_and_all_messages_are_numbers(name):
    start, first, second, info = after_two_rounds(name)
    assert info.records().aggregator.finite.all()
    equal(first.server.params, start.server.params)
    if name in ("scaffold", "feddyn"):
        equal(first.server.control, start.server.control)
        equal(first.memory, start.memory)
    assert np.isfinite(second.server.params).all()
    assert np.any(second.server.params != first.server.params)


def test_a_rate_of_0_takes_nothing_from_what_scaffold_has_learned():
    *_, learned, _ = after_two_rounds("scaffold")
    assert np.any(learned.memory[0]) and np.any(learned.server.control)
    # As at the end of a schedule: c_k - c + 0 is not what client k has learned.
    late = learned._replace(server=learned.server._replace(round=jnp.int32(0)))
    state, _ = federation("scaffold").run(late)
    equal(state.memory, learned.memory)
    equal(state.server.control, learned.server.control)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_round_in_which_nobody_is_heard_leaves_the_model(name):
    *_, second, _ = after_two_rounds(name)
    third, _ = federation(name).run(second, NONE)
    equal(third.server.params, second.server.params)
    if name.startswith("mime"):
        equal(third.server.statistics, second.server.statistics)
    fourth, _ = federation(name).run(third)
    assert np.isfinite(fourth.server.params).all()
    assert np.any(fourth.server.params != third.server.params)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_client_without_numbers_is_counted_and_harmless(name):
    *_, second, _ = after_two_rounds(name)
    state, info = federation(name).run(second, centres=with_nan(BAD))
    assert info.records().aggregator.finite.tolist() == WITHOUT.tolist()
    state, info = federation(name).run(state)
    assert info.records().aggregator.finite.all()
    for leaf in jax.tree.leaves(state.server):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize(
    ("name", "fields"),
    [("afl", ("weights", "heaviest")), ("mimelite", ("gradient", "statistics"))],
)
def test_the_first_sweep_is_as_if_it_had_not_been_heard(name, fields):
    *_, second, _ = after_two_rounds(name)
    with_it, _ = federation(name).run(second, centres=with_nan(BAD))
    without, _ = federation(name).run(second, WITHOUT)
    before, _ = federation(name).run(second)
    for field in fields:
        found, said, other = (
            jax.tree.leaves(getattr(state.server, field))
            for state in (with_it, without, before)
        )
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-6), found, said)
        assert np.any(found[0] != other[0])


def test_a_figure_that_is_no_number_is_counted_where_the_message_is_one():
    start, *_ = after_two_rounds("afl")
    centres = CENTRES.copy()
    centres[BAD] = 1e25  # its square is none
    state, info = federation("afl").run(start, centres=centres)
    assert info.records().aggregator.finite.tolist() == WITHOUT.tolist()
    assert np.isfinite(state.server.weights).all()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_ifca_does_not_choose_a_model_without_numbers(broken):
    models = MODELS.copy()
    models[0] = broken
    one = federation("ifca")
    state, _ = one.run(one.start(models))
    state, info = one.run(state)
    assert info.records().aggregator.finite.all()
    equal(state.server.params[0], models[0])
    # Two steps of 1/4 towards the mean of the centres.
    said = 5 + (1 - 0.75**2) * (CENTRES.mean(0) - 5)
    np.testing.assert_allclose(state.server.params[1], said, rtol=1e-5)


def test_an_aborted_round_is_not_remembered_but_by_what_is_personal():
    one = Federation(DITTO(), compression.top_k(0.4), robust.krum(1))
    before, info = one.run(one.start())
    assert not bool(info.aggregate.aborted)
    assert np.any(before.memory[0]) and np.any(jax.tree.leaves(before.memory[1])[0])
    few = np.arange(K) < 4  # five are needed
    after, info = one.run(before, few)
    assert bool(info.aggregate.aborted)
    equal(after.memory[1], before.memory[1])
    equal(after.server.params, before.server.params)
    assert np.any(after.memory[0] != before.memory[0], axis=1).all()


def test_a_model_of_ones_own_survives_a_round_of_nan():
    one = Federation(DITTO())
    before, _ = one.run(one.start())
    after, info = one.run(before, centres=with_nan([2]))
    said = info.records().aggregator.finite
    assert not said[2] and np.delete(said, 2).all()
    equal(after.memory[0][2], before.memory[0][2])
    last, info = one.run(after)
    assert info.records().aggregator.finite.all() and np.isfinite(last.memory[0]).all()


@pytest.mark.parametrize("name", ["ditto", "mimelite"])
def test_who_made_no_step_sent_nothing_that_is_no_number(name):
    one = Federation({**ALGORITHMS, "ditto": DITTO}[name]())
    state, data = one.start(), {"b": jnp.asarray(CENTRES)}
    sizes = np.ones(K, int)
    sizes[1] = 0
    chosen = rounds.Chosen(np.arange(K), sizes, np.ones(K))
    _, info = one.made.run(
        state,
        jax.random.key(0),
        chosen,
        lambda handed: (data, np.repeat(np.arange(K), handed)),
    )
    assert info.records().aggregator.finite.all()


def test_neither_order_nor_devices_show_in_who_shares_masks_with_whom():
    lattice = secure.modular_sum(2.0**-16, max_clients=16, size=D, neighbours=2)
    one, two = (
        Federation(
            averaging.fedavg(loss, SGD, ONE),
            clipping.clip(1.0),
            lattice,
            devices=devices,
            exact=True,
            group=1,
        )
        for devices in (1, 2)
    )
    # Two who are gone abort a round where somebody has both for neighbours.
    heard = (np.arange(K) != 1) & (np.arange(K) != 4)
    found = []
    for run, order in ((one, None), (one, np.arange(K)[::-1]), (two, None)):
        state, aborted = run.start(), []
        for number in range(8):
            state, info = run.run(state, heard, order=order, key=number)
            aborted.append(bool(info.aggregate.aborted))
        found.append((aborted, np.asarray(state.server.params).tobytes()))
    assert found[1:] == found[:1] * 2
    assert 0 < sum(found[0][0]) < 8
