"""Rounds: one compilation of everything, whatever the state comes from."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.federated import worlds
from trustml.federated import rounds, weighting
from trustml.federated.aggregation import chain
from trustml.federated.aggregation import weighting as links
from trustml.federated.algorithms import averaging


def test_the_second_round_compiles_nothing():
    world = worlds.make(np.full(8, 10))
    made = rounds.make(
        averaging.fedavg(worlds.loss, optax.sgd(0.1), optax.sgd(1.0)),
        chain.chain(links.of(weighting.by_data()), links.realised()),
        population=8,
        settings=rounds.Settings(
            jit=jax.jit,
            lanes=4,
            batch_size=5,
            capacity=8,
            devices=jax.devices()[:1],
        ),
    )
    data = jax.tree.map(jnp.asarray, world.data)
    state = made.init(world.params)
    compiled = collections.Counter()

    def listen(event, *_, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled[fun_name] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for number in range(3):
            chosen = rounds.Chosen(np.arange(8), world.sizes, np.ones(8))
            key = jax.random.key(number)
            state, _ = made.run(state, key, chosen, lambda _: (data, np.arange(80)))
            if number == 1:  # as a checkpoint hands it back: on no device
                state = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), state)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    names = [f"jit({name})" for name in ("model", "begin", "run", "end", "finish")]
    assert {name: compiled[name] for name in names} == dict.fromkeys(names, 1)
