"""Exact mode on MNIST: one model to the bit, however it was computed.

SCAFFOLD, so that clients' memories and two messages are in it. Layouts differ in lanes,
devices, windows, in whether rows live on the device or are streamed, and in whether the
run was cut in the middle and taken up by a fresh process's worth of objects.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trustml import parallel
from trustml.federated import feed, rounds, visits, weighting
from trustml.federated import store as stores
from trustml.federated.aggregation import chain
from trustml.federated.aggregation import weighting as links
from trustml.federated.algorithms import control

CLIENTS, COHORT, BATCH = 40, 12, 10
REFERENCE = (4, 1, 64, True, False)
LAYOUTS = [*itertools.product((1, 7, 64), (True, False), (False, True))]
SOME = {
    "more lanes on two devices, streamed, resumed": (8, 2, 7, False, True),
    "four devices, windows of one step": (4, 4, 1, True, False),
}


def loss(params, row, key):
    del key
    row = feed.widen(row, {"image": 255})
    hidden = jnp.tanh(row["image"].reshape(-1) @ params["a"])
    return -jax.nn.log_softmax(hidden @ params["b"])[row["label"]]


@functools.cache
def held(data_dir):
    with np.load(data_dir / "mnist/mnist.npz") as file:
        images, labels = file["x_train"][:1500], file["y_train"][:1500]
    owner = np.random.default_rng(0).zipf(1.3, 1500) % CLIENTS
    columns = {"image": images, "label": labels.astype(np.int32)}
    return stores.from_arrays(columns, owner, client_keys=np.arange(CLIENTS))


def start(layout, data_dir):
    lanes, devices, window, resident, _ = layout
    found = jax.devices()[:devices]
    algorithm = control.scaffold(loss, learning_rate=0.1, server=optax.sgd(1.0))
    settings = rounds.Settings(
        jit=jax.jit,
        lanes=lanes,
        batch_size=BATCH,
        capacity=16,
        group=1,
        window=window,
        exact=True,
        devices=found,
    )
    aggregator = chain.chain(links.of(weighting.mean()))
    made = rounds.make(algorithm, aggregator, population=CLIENTS, settings=settings)
    put = functools.partial(parallel.replicate, devices=found)
    if devices == 1:
        put = functools.partial(jax.device_put, device=found[0])
    return made, feed.open(held(data_dir), resident=resident, put=put)


@functools.cache
def bits(layout, count, data_dir):
    made, source = start(layout, data_dir)
    a, b = jax.random.split(jax.random.key(0))
    params = {
        "a": jax.random.normal(a, (784, 8)) / 28,
        "b": jax.random.normal(b, (8, 10)) / 3,
    }
    state = made.init(params)
    sizes = stores.sizes(source_store := held(data_dir)).astype(np.int64)
    starts = np.asarray(source_store.offsets[:-1])
    words = np.array([3, 4], np.uint32)
    for number in range(count):
        if layout[-1] and number == count // 2:
            state = jax.tree.map(np.array, jax.device_get(state))
            made, source = start(layout, data_dir)
        who = np.random.default_rng(number).permutation(CLIENTS)[:COHORT]

        def place(handed, who=who, number=number, source=source):
            rows = visits.rows(
                words, number, who, sizes[who], handed, starts=starts[who]
            )
            return source.place(rows)

        chosen = rounds.Chosen(who, sizes[who], np.ones(COHORT))
        key = jax.random.fold_in(jax.random.key(1), number)
        state, info = made.run(state, key, chosen, place)
        assert int(info.clamped) == 0
    leaves = [*jax.tree.leaves(state.server), *jax.tree.leaves(state.memory)]
    return b"".join(np.asarray(x).tobytes() for x in leaves)


@pytest.mark.data
@pytest.mark.parametrize("name", SOME)
def test_a_few_layouts_are_equal_to_the_bit(name, data_dir):
    assert bits(SOME[name], 2, data_dir) == bits(REFERENCE, 2, data_dir)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_all_layouts_are_equal_to_the_bit(lanes, devices, data_dir):
    for rest in LAYOUTS:
        layout = (lanes, devices, *rest)
        assert bits(layout, 10, data_dir) == bits(REFERENCE, 10, data_dir), layout
