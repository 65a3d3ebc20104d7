"""What a federated algorithm is: functions of one client, and one of the server.

    model   = algorithm.model(state)                    what every client gets
    outcome = algorithm.program(model, client)          in the lanes
    state   = algorithm.server(state, Gathered(mean of messages, ...))

An algorithm never sees a cohort, lanes, weights or noise: it is given the (weighted,
clipped, private, ...) mean of the messages, and may not ask how it came about.

Some look at the server's model before they train (Mime, q-FFL, IFCA): `first` is then a
program that runs over the same cohort, its mean message goes to `prepare`, its records
are told to the clients as `client.given`.

Example::

    algorithm = averaging.fedavg(task.loss, optax.sgd(0.1), optax.sgd(1.0))
    state = algorithm.init(params)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trustml.federated import lanes

PyTree = Any
Params = Any
Key = Any
Loss = Callable[[Params, Any, Key], jax.Array]


class Gathered(NamedTuple):
    """What the server knows when a cohort has trained.

    `prepare` gets its rows in the order of clients, `server` as the devices hold them.

    Attributes:
      message: the mean of the clients' messages.
      clients: float32[], m, clients that the mean is over: heard, and with examples.
      population: float32[], K.
      numbers: int32[C], clients of the cohort; K where a place is empty.
      arrived: bool[C], whose message the server has; of clients with examples.
      records: pytree [C, ...], what the program kept of each, heard or not.
    """

    message: PyTree
    clients: jax.Array
    population: jax.Array
    numbers: jax.Array
    arrived: jax.Array
    records: PyTree


class FederatedAlgorithm(NamedTuple):
    """Pure functions; see the module docstring.

    Attributes:
      init: params -> state, with a field `params`.
      model: state -> pytree that every client gets.
      program: what a client does.
      server: (state, Gathered) -> state.
      memory: params -> what one client remembers between rounds; () if nothing.
      personal_memory: whether that is the client's affair alone (a model of its own),
        and moves on wherever it trained. Else it goes with the message (a control
        variate, whose change the server adds to its own), and stays as it was where
        that did not arrive, or was not finite.
      first: program of a sweep at the server's model, or None.
      prepare: (state, Gathered) -> state, after that sweep.
      given: what one client is told beside the model, for its shapes; () if nothing,
        or the records of `first`.
      personal: (params, memory) -> the model that a client uses itself; None where it
        has none of its own.
      fair: whether the mean has to be uniform (each client the same weight, over those
        that are heard).
      beside: what a message holds that is no direction of the model, in words; '' if
        nothing. What treats it as one vector (clipping, compression, robust rules) is
        then refused.
      clients: K, where it was made for so many; 0 for any number.
      reveals: what the server has to know of clients as it is, beside the noisy mean of
        their messages; '' if nothing. Noise is then refused.
      unbounded: what of a message has no scale of its own, in words; '' if nothing.
        Sums in integers are then refused.
    """

    init: Callable[[Params], PyTree]
    model: Callable[[PyTree], PyTree]
    program: lanes.Program
    server: Callable[[PyTree, Gathered], PyTree]
    memory: Callable[[Params], PyTree] = lambda params: ()
    personal_memory: bool = False
    first: lanes.Program | None = None
    prepare: Callable[[PyTree, Gathered], PyTree] = lambda state, gathered: state
    given: PyTree = ()
    personal: Callable[[Params, PyTree], Params] | None = None
    fair: bool = False
    beside: str = ""
    clients: int = 0
    reveals: str = ""
    unbounded: str = ""


class Record(NamedTuple):
    """Of one client's training.

    Attributes:
      loss: float32[], mean over the examples as they were met.
      examples: float32[], met.
    """

    loss: jax.Array
    examples: jax.Array


class Met(NamedTuple):
    """Sums over the examples that a client has met; float32[]."""

    loss: jax.Array
    examples: jax.Array


def nothing_met() -> Met:
    """Before the first batch."""
    return Met(jnp.float32(0), jnp.float32(0))


def record(met: Met) -> Record:
    """The means of what was met."""
    return Record(met.loss / jnp.maximum(met.examples, 1), met.examples)


def objective(loss: Loss):
    """Mean loss over the real rows of a batch, with its gradient.

    Returns:
      fn(params, batch, mask, key) -> (gradient, Met). The mean of no row is 0.
    """

    def mean(params, batch, mask, key):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            key, jnp.arange(mask.size, dtype="uint32")
        )
        losses = jax.vmap(loss, (None, 0, 0))(params, batch, keys)
        total = jnp.where(mask, losses, 0).sum()
        count = mask.sum()
        mean = total / jnp.maximum(count, 1).astype(total.dtype)
        return mean, Met(*(x.astype(jnp.float32) for x in (total, count)))

    return jax.grad(mean, has_aux=True)


def add(a: PyTree, b: PyTree) -> PyTree:
    """The sum a + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """The difference a - b, leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def add_scaled(a: PyTree, scale: Any, b: PyTree) -> PyTree:
    """The sum a + scale * b, leaf by leaf, in the types of a."""
    return jax.tree.map(
        lambda x, y: x + jnp.asarray(scale, x.dtype) * y.astype(x.dtype), a, b
    )


def scaled(scale: Any, a: PyTree) -> PyTree:
    """The product scale * a, leaf by leaf, in the types of a."""
    return jax.tree.map(lambda x: jnp.asarray(scale, x.dtype) * x, a)


def where(chosen: jax.Array, a: PyTree, b: PyTree) -> PyTree:
    """Tree a where `chosen`, bool[], is true, and b elsewhere."""
    return jax.tree.map(lambda x, y: jnp.where(chosen, x, y), a, b)


def zeros(params: Params) -> PyTree:
    """A tree of zeros of the same shapes."""
    return jax.tree.map(jnp.zeros_like, params)
