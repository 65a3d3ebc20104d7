"""What user-level privacy adds to a round, by the compiler's own figures.

A round of S steps of L lanes, of which E end a client, costs S step + E boundary +
server. XLA counts the body of a loop once, with both branches of what ends a client, so
the figures of the program `run` are step + boundary, and those of private and plain
differ by what clipping adds to a boundary. The step is compiled alone, too.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from trustml import rng
from trustml.federated import rounds, weighting
from trustml.federated.aggregation import chain, clipping, dp
from trustml.federated.aggregation import weighting as links
from trustml.federated.algorithms import averaging

L, B, M, N = 4, 20, 20, 600  # lanes, batch, clients, examples of each


def loss(params, row, key):
    del key
    hidden = jax.nn.relu(row["x"] @ params["a"] + params["c"])
    return -jax.nn.log_softmax(hidden @ params["b"] + params["d"])[row["y"]]


def costs(aggregator):
    """Program -> {'flops', 'bytes'}, of one round."""
    found = collections.defaultdict(dict)

    def jit(fn, **options):
        made = jax.jit(fn, **options)

        def called(*args):
            if fn.__name__ not in found:
                analysis = made.lower(*args).compile().cost_analysis()
                found[fn.__name__] = {
                    "flops": analysis.get("flops", 0.0),
                    "bytes": analysis.get("bytes accessed", 0.0),
                }
            return made(*args)

        return called

    settings = rounds.Settings(
        jit=jit, lanes=L, batch_size=B, capacity=32, devices=jax.devices()[:1]
    )
    algorithm = averaging.fedavg(loss, optax.sgd(0.1), optax.sgd(1.0))
    made = rounds.make(algorithm, aggregator, population=M, settings=settings)
    shapes = {"a": (784, 200), "c": (200,), "b": (200, 10), "d": (10,)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    state = made.init(params, rng.root(0))
    data = {"x": jnp.zeros((N, 784)), "y": jnp.zeros(N, jnp.int32)}
    chosen = rounds.Chosen(np.arange(M), np.full(M, N), np.ones(M), float(M))
    made.run(
        state,
        jax.random.key(0),
        chosen,
        lambda handed: (data, np.tile(np.arange(N), len(handed))),
    )

    def step(local, batch, keys):
        model = averaging.Model(params, jnp.float32(1))
        run = jax.vmap(algorithm.program.step, (None, 0, 0, 0, 0, None))
        return run(model, local, batch, jnp.ones((L, B), bool), keys, jnp.int32(0))

    model = averaging.Model(params, jnp.float32(1))
    one = algorithm.program.start(model, None, ())
    local = jax.tree.map(lambda x: jnp.stack([x] * L), one)
    batch = {"x": jnp.zeros((L, B, 784)), "y": jnp.zeros((L, B), jnp.int32)}
    jit(step)(local, batch, jax.random.split(jax.random.key(0), L))
    return found


@pytest.mark.slow
def test_privacy_adds_a_tenth_at_most():
    rule = links.of(weighting.mean(float(M)))
    plain = costs(chain.chain(rule))
    private = costs(chain.chain(clipping.clip(1.0), rule, dp.central(1.0)))
    # Clients of one size end together, L at a time; at worst each ends alone.
    steps, ends = M * N // B // L, {"together": M // L, "alone": M}
    for kind in ("flops", "bytes"):
        step = plain["step"][kind]
        boundary = plain["run"][kind] - step
        clipping_adds = private["run"][kind] - plain["run"][kind]
        noise_adds = private["finish"][kind] - plain["finish"][kind]
        overhead = {}
        for name, count in ends.items():
            whole = steps * step + count * boundary + plain["finish"][kind]
            overhead[name] = (count * clipping_adds + noise_adds) / whole
        print(f"{kind}: step {step:.4g}, boundary {boundary:.4g}, {clipping_adds=:.4g}")
        print(f"{kind}: {noise_adds=:.4g}; overhead of a round {overhead}")
        assert boundary > 0
        assert overhead["together"] < 0.1, kind
        assert overhead["alone"] < 0.15, kind
