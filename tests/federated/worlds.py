"""Small federations for tests: ragged clients, a loss, a loop that is plainly right.

The loop trains one client after another with one step at a time, in NumPy order.
"""

import collections
import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml.federated import sweep

SIZES = np.array([7, 0, 15, 1, 10, 2, 20, 12, 10, 5, 5])
DATA_WIDTH, CLASSES = 4, 3


class World(NamedTuple):
    """Clients with their rows one after another.

    Attributes:
      sizes: int[K].
      data: columns x float32[N, 4], y int32[N].
      params: of the model.
    """

    sizes: np.ndarray
    data: dict[str, np.ndarray]
    params: Any

    @property
    def offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def rows(self, client: int) -> dict[str, np.ndarray]:
        where = slice(self.offsets[client], self.offsets[client + 1])
        return {name: column[where] for name, column in self.data.items()}


def loss(params, example, key):
    """Cross-entropy of a network with one hidden layer."""
    del key
    hidden = jnp.tanh(example["x"] @ params["body"])
    logits = hidden @ params["head"] + params["bias"]
    return -jax.nn.log_softmax(logits)[example["y"]]


def make(sizes=SIZES, seed=0) -> World:
    """Clients whose labels lean towards one class each."""
    rng = np.random.default_rng(seed)
    sizes = np.asarray(sizes)
    count = int(sizes.sum())
    lean = np.repeat(np.arange(len(sizes)) % CLASSES, sizes)
    y = np.where(rng.random(count) < 0.6, lean, rng.integers(0, CLASSES, count))
    x = rng.normal(size=(count, DATA_WIDTH)) + y[:, None] * 0.5
    params = {
        "body": rng.normal(size=(DATA_WIDTH, 5)) * 0.5,
        "head": rng.normal(size=(5, CLASSES)) * 0.5,
        "bias": np.zeros(CLASSES),
    }
    data = {"x": x.astype(np.float32), "y": y.astype(np.int32)}
    return World(sizes, data, jax.tree.map(lambda a: jnp.asarray(a, "float32"), params))


def batches(world: World, client: int, batch_size: int, epochs: int):
    """The batches of a client, in the order of its rows."""
    rows = world.rows(client)
    for _ in range(epochs):
        for begin in range(0, int(world.sizes[client]), batch_size):
            yield {name: x[begin : begin + batch_size] for name, x in rows.items()}


def mean_gradient(params, rows):
    """Of the mean loss over rows."""

    def mean(params):
        return jax.vmap(lambda row: loss(params, row, None))(rows).mean()

    return jax.grad(mean)(params)


def run(
    world: World,
    program,
    model,
    *,
    weights=None,
    given=(),
    memory=(),
    key=None,
    batch_size=5,
    epochs=1,
    lanes=4,
    capacity=16,
    **settings,
):
    """One sweep over all clients; `sweep.Swept`."""
    made = sweep.make(
        program,
        jit=jax.jit,
        lanes=lanes,
        batch_size=batch_size,
        epochs=epochs,
        capacity=capacity,
        devices=settings.pop("devices", jax.devices()[:1]),
        **settings,
    )
    weights = np.ones(len(world.sizes)) if weights is None else weights
    cohort = sweep.Cohort(
        np.arange(len(world.sizes)), world.sizes, weights, given, memory
    )
    offsets, handed = world.offsets, made.rows(world.sizes).rows
    index = np.concatenate(
        [
            offsets[k] + np.arange(handed[k]) % max(world.sizes[k], 1)
            for k in range(len(world.sizes))
        ]
    )
    key = jax.random.key(0) if key is None else key
    data = jax.tree.map(jnp.asarray, world.data)
    return made.run(model, key, cohort, data, index)


@contextlib.contextmanager
def compilations():
    """Counts what is compiled inside, by the name of the function."""
    compiled = collections.Counter()

    def listen(event, *_, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled[fun_name] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
