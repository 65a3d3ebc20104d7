"""A federation in a few lines: round after round, as an iterator.

What `trustml.experiments.federate` does with configs, checkpoints and reports, for a
notebook: selection, rows, rounds. Clients hold what they hold from the start.

Example::

    held = store.from_arrays({'x': x, 'label': y}, clients=who_wrote_each_row)
    algorithm = averaging.fedavg(task.loss, optax.sgd(0.1), optax.sgd(1.0))
    for number, state, info in simulation.run(
        params, held, algorithm, selection.uniform(20, seed=0),
        rounds=100, batch_size=10, jit=jax.jit,
    ):
        print(number, info.records().algorithm.loss.mean())
    state.server.params

With noise in the aggregator, `promise` says what it is worth to a client.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from trustml import _validate, parallel, rng
from trustml.federated import feed, selection, store, user_privacy, visits
from trustml.federated import rounds as rounds_lib
from trustml.federated import weighting as weighting_lib
from trustml.federated.aggregation import chain, weighting
from trustml.federated.algorithms import base


def run(
    params: Any,
    held: store.ClientStore,
    algorithm: base.FederatedAlgorithm,
    selector: selection.Selector,
    *,
    rounds: int,
    batch_size: int,
    jit: Callable[..., Any],
    weights: weighting_lib.Weighting | None = None,
    aggregator: chain.Aggregator | None = None,
    seed: int = 0,
    noise: rng.Root | None = None,
    lanes: int = 8,
    epochs: int = 1,
    max_examples: int | None = None,
    state: rounds_lib.State | None = None,
    **settings: Any,
) -> Iterator[tuple[int, rounds_lib.State, rounds_lib.Info]]:
    """An iterator of (number of the round, state after it, what it was like).

    Clients' memories are written in place: of several states that were kept, only the
    last one's memory is what it was.

    Args:
      params: the model at the start.
      held: who holds what; ragged columns need a `feed` of one's own.
      algorithm: what clients and server do.
      selector: who takes part.
      rounds: how many in all, those before `first` included.
      batch_size: of a client.
      jit: `jax.jit`.
      weights: how much a client counts where there is no `aggregator`; by data, or
        uniform where the algorithm asks.
      aggregator: what becomes of messages; their weighted mean where None.
      seed: of order and dropout.
      noise: `rng.Root` of the aggregator's noise, where it adds any. A second call with
        the same root adds the same noise again, which then hides nothing: pass a new
        one, and count the rounds of both calls.
      lanes: L.
      epochs: passes of a client over its examples.
      max_examples: of a client, in a round.
      state: the last state of an earlier call, to go on from with the round after;
        `rounds` counts both, and `params` is not read. The other arguments should be
        those of that call. Not with noise, whose promise is for the rounds of one call.
      settings: others of `rounds.Settings`.

    Raises:
      ValueError: when called, for whatever is out of bounds, or where the aggregator
        adds noise that promises nothing in this run; see `promise`.
    """
    first = 0 if state is None else _made(state)
    if first and selector.listens:
        bound = f"goes on, and what {selector.name} heard before is lost"
        _validate.fail("state", f"round {first}", bound, "make all rounds in one call")
    if max_examples is not None:
        _validate.integer_at_least("max_examples", max_examples, 1, "None takes all")
    if jax.tree.leaves(algorithm.given) and algorithm.first is None:
        raise ValueError(
            "algorithm tells clients what a simulation does not know, such as the "
            "staleness of FedBuff; make its rounds with rounds.make and Chosen.given."
        )
    cure = "a round is the least" if state is None else "the state has made the others"
    total = _validate.integer_at_least("rounds", rounds, first + 1, cure)
    if unknown := sorted(set(settings) - set(rounds_lib.Settings._fields)):
        known = ", ".join(rounds_lib.Settings._fields)
        _validate.fail("settings", unknown[0], f"is none of {known}")
    if aggregator is not None and weights is not None:
        cure = "leave it out: the chain has weights of its own"
        _validate.fail("weights", weights.name, "has no effect on an aggregator", cure)
    sizes = store.sizes(held)
    if aggregator is None:
        even = weighting_lib.mean() if algorithm.fair else weighting_lib.by_data()
        aggregator = chain.chain(weighting.of(weights or even))
    if aggregator.release is not None:
        if state is not None:
            bound = "goes on, and the promise is for the rounds of one call"
            cure = "make all rounds in one call"
            _validate.fail("state", f"round {first}", bound, cure)
        _claim(held, selector, aggregator, total)
    if aggregator.release is not None and noise is None:
        cure = "pass noise=rng.root(), whose key comes from the operating system"
        _validate.fail("noise", None, "leaves the aggregator's noise without one", cure)
    devices = settings.pop("devices", None) or parallel.devices()
    expected = max(selector.cohort, selector.most)
    places = rounds_lib.capacity(expected, len(sizes), lanes=lanes)
    made = rounds_lib.make(
        algorithm,
        aggregator,
        population=len(sizes),
        settings=rounds_lib.Settings(
            jit=jit,
            lanes=lanes,
            batch_size=batch_size,
            capacity=settings.pop("capacity", places),
            epochs=epochs,
            devices=devices,
            **settings,
        ),
    )
    selected = selector.init(sizes)
    for number in range(first):  # what it has drawn so far
        _, selected = selector.select(selected, number)
    if state is None:
        state = made.init(params, noise)
    else:  # memory is written in place, and this one is the caller's
        memory = jax.tree.map(np.array, state.memory)
        state = state._replace(memory=memory)
    public, key_of = rng.root(seed), jit(rounds_lib.round_key)
    begin = _First(held, selector, selected, aggregator.rule, made, state, devices)
    numbers = range(first, total)
    return _rounds(begin, numbers, public, lambda n: key_of(public, n), max_examples)


def promise(
    held: store.ClientStore,
    selector: selection.Selector,
    aggregator: chain.Aggregator,
    *,
    rounds: int,
    delta: float,
    accountant: str = "",
) -> user_privacy.UserPrivacy:
    """What `run` with these arguments promises each client; for `user_privacy.explain`.

    Args:
      held: who holds what.
      selector: who takes part.
      aggregator: with noise.
      rounds: how many.
      delta: of the promise.
      accountant: 'pld' or 'rdp'; '' takes what the noise has a bound by, PLD first.

    Raises:
      ValueError: where the aggregator adds no noise, the selector has no event, persons
        have several clients, or the noise is for other rounds than these.
    """
    if aggregator.release is None:
        cure = "add one of aggregation.dp"
        _validate.fail(
            "aggregator", "chain", "adds no noise and promises nothing", cure
        )
    claim = _claim(held, selector, aggregator, rounds)
    usual = "rdp" if aggregator.release.kind == "discrete" else "pld"
    return user_privacy.account(claim, delta=delta, accountant=accountant or usual)


def _made(state: rounds_lib.State) -> int:
    if not hasattr(state.server, "round"):
        bound = "does not count rounds in a field `round`, and cannot go on"
        _validate.fail("state.server", type(state.server).__name__, bound)
    return int(state.server.round)


def _claim(held, selector, aggregator, rounds) -> selection.Claim:
    user_privacy.check_users(held.user)
    state = selector.init(store.sizes(held))
    secure = "secure." in aggregator.explain()
    fixed = aggregator.rule.fixed and not secure
    release = aggregator.release
    return user_privacy.of_release(selector, state, release, rounds, fixed=fixed)


class _First(NamedTuple):
    """What the first round begins with."""

    held: store.ClientStore
    selector: selection.Selector
    selected: selection.State
    rule: weighting_lib.Weighting
    made: rounds_lib.Rounds
    state: rounds_lib.State
    devices: list[jax.Device]


def _rounds(begin, numbers, public, key_of, max_examples):
    held, selector, selected, rule, made, state, devices = begin
    sizes = store.sizes(held)
    words = jax.random.key_data(rng.step_key(rng.stream(public, "data"), 0))
    source = feed.open(held, put=lambda tree: parallel.replicate(tree, devices))
    for number in numbers:
        cohort, selected = selector.select(selected, number)
        members = cohort.clients
        count = sizes[members].astype(np.int64)
        chosen = rounds_lib.Chosen(
            members,
            count if max_examples is None else np.minimum(count, max_examples),
            rule.of(members, count),
            rule.total,
        )
        place = visits.placed(
            source.place,
            words,
            number,
            members,
            count,
            starts=held.offsets[members],
            limit=max_examples,
        )
        state, info = made.run(state, key_of(number), chosen, place)
        if selector.listens:
            loss = np.asarray(info.records().algorithm.loss)
            seconds = info.steps.astype(float)
            selected = selector.observe(selected, number, members, loss, seconds)
        yield number, state, info
