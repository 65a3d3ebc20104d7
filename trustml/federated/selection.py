"""Selection: who takes part in a round, and what that is worth in privacy.

A selector is a NamedTuple of pure functions of (state, round). Its draws come from
Philox keyed by (seed, round): round 10**6 costs what round 0 costs, and a resumed run
replays nothing. Sizes change with the data (`timeline`), hence `resize`, which rebuilds
the index; nothing else loops over clients.

| selector | rule | worth |
|---|---|---|
| `uniform`, `poisson`, `capped_power` | a coin of p_k each | Poisson at largest p_k |
| `fixed_size` | uniform m-subset | subsets, replace-one, sensitivity 2 C |
| `cyclic` | coins within group r mod b | Poisson, rounds / b times |
| `quotas.systematic` | exactly m, exactly p_k | no amplification |
| `quotas.stratified` | quotas over deciles of n | no amplification |
| `quotas.top_k` | the m largest | no amplification |
| `quotas.trace` | given lists | as often as a client occurs |
| `utility.power_of_choice`, `utility.oort` | by reported losses | none: refused |

"No amplification" is a claim still: every round counts as if everybody took part. Where
the losses of clients decide there is none, since the choice itself tells of the data.

Sizes n_k are public throughout ("the server has that number already"): neighbours
differ in what one client contributes, its examples or nothing, at the same n_k and
hence the same probabilities (zero-out). `poisson(..., scale=c)` is for those who cannot
accept that: then p_k depends on n_k alone and clients may be added or removed.

Dimension key: K clients, m clients of a cohort.

Example::

    selector = selection.capped_power(100, seed=0)
    state = selector.init(sizes)
    cohort, state = selector.select(state, round)
    cohort.clients, cohort.inclusion
    claim = selector.event(state, noise_multiplier, rounds)     # or NoEvent(reason)
    print(selector.describe(state))
"""

import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import dp_accounting
import numpy as np
from jaxtyping import Float, Int
from numpy import typing as npt

from trustml import _validate, rng
from trustml.federated import coins, probabilities
from trustml.privacy import draws, sampling

Relation = dp_accounting.NeighboringRelation

ZERO_OUT = "zero-out: one client's examples against no contribution, sizes public"
ADD_REMOVE = "add-or-remove: one client there or not, sizes private"
REPLACE = "replace-one: one client's examples against any others, sizes public"


class Cohort(NamedTuple):
    """Who takes part in a round.

    Attributes:
      round: its number, from 0.
      clients: int64[m] ids, ascending; may be empty, which is a round all the same.
      inclusion: float64[m] p_k of each; NaN where the rule has none.
    """

    round: int
    clients: Int[np.ndarray, " m"]
    inclusion: Float[np.ndarray, " m"]


class Claim(NamedTuple):
    """What a number of rounds is worth.

    Attributes:
      event: multipliers are noise_stddev / sensitivity under `relation`.
      relation: neighbouring relation of dp-accounting.
      adjacency: the same in words, with what is public.
      rate: the largest chance of a client in a round, where coins are thrown; else 1.
      amplified: whether the sampling lowers epsilon.
    """

    event: dp_accounting.DpEvent
    relation: Relation
    adjacency: str
    rate: float
    amplified: bool


class NoEvent(NamedTuple):
    """There is nothing to account for.

    Attributes:
      reason: a sentence.
    """

    reason: str


class State(NamedTuple):
    """What a selector keeps between rounds.

    Attributes:
      sizes: int[K] n_k, by reference: not to be written to.
      prepared: made from the sizes, an index or probabilities; not worth saving.
      observed: what clients reported (`utility.Observed`), to be saved; or None.
    """

    sizes: np.ndarray
    prepared: Any
    observed: Any = None


class Selector(NamedTuple):
    """Pure functions, and what a report needs.

    Attributes:
      name: of the function that made it.
      cohort: m, expected clients of a round; a constant one may divide by.
      init: (sizes int[K]) -> State.
      resize: (State, sizes int[K]) -> State, the same clients with other sizes.
      select: (State, round) -> (Cohort, State).
      observe: (State, round, clients, loss, seconds) -> State; loss and seconds are
        float[m], what the cohort reported.
      listens: whether the rule looks at these (those of `utility` do); if not, nobody
        has to wait for them.
      inclusion: (State) -> p_k float64[K]; None where the rule has none.
      event: (State, noise_multiplier, rounds) -> Claim or NoEvent; the multiplier is
        noise_stddev / (C s_max), the rounds those of the state's sizes.
      describe: (State) -> sentence.
      law: 'coins', 'subset' or 'certain' where cohorts have a joint law in closed form:
        independent, uniform m-subset, one set; else ''.
      exponent: beta where p_k is proportional to n^beta, a cap apart; else None.
      seed: 128-bit integer; save it with the run. None where nothing is drawn.
      secret: True where the seed came from the OS.
      apart: rounds from one visit of a client to its next, at least.
      most: clients of the largest cohort, where that is known; else 0.
    """

    name: str
    cohort: float
    init: Callable[..., State]
    resize: Callable[..., State]
    select: Callable[..., tuple[Cohort, State]]
    observe: Callable[..., State]
    listens: bool
    inclusion: Callable[[State], np.ndarray | None]
    event: Callable[..., Claim | NoEvent]
    describe: Callable[[State], str]
    law: str
    exponent: float | None
    seed: int | None
    secret: bool
    apart: int = 1
    most: int = 0


def uniform(cohort: float, *, seed: int | None = None) -> Selector:
    """`poisson` with one p for all clients that hold data."""
    return poisson(probabilities.uniform(), cohort, seed=seed)


def capped_power(
    cohort: float,
    *,
    beta: float = 0.5,
    p_max: float | None = None,
    seed: int | None = None,
) -> Selector:
    """`poisson` with p_k = min(p_max, c n^beta); the default where not uniform.

    Args:
      cohort: m.
      beta: 0.5 by default; 0 is uniform.
      p_max: None: 4 m/K.
      seed: see `poisson`.

    Raises:
      ValueError: naming field, value, bound and cure.
    """
    return _coins("capped_power", probabilities.power(beta), cohort, p_max, True, seed)


def poisson(
    score: probabilities.Score,
    cohort: float,
    *,
    p_max: float | None = None,
    scale: float | None = None,
    seed: int | None = None,
) -> Selector:
    """Every client takes part with its own probability, independently.

    Args:
      score: how p grows with n (`trustml.federated.probabilities`).
      cohort: m > 0, expected clients of a round.
      p_max: cap of p, in (0, 1]; None: 1.
      scale: None: c is solved for m. A constant c makes the guarantee one for adding
        and removing clients, accounted at p_max, which it needs; m is then no more than
        the constant to divide by.
      seed: None for 128 bits from the OS; an integer below 2**128 is reproducible, and
        amplification holds against those who do not know it.

    Raises:
      ValueError: when built; from `init` where m is infeasible with the sizes at hand.
    """
    if scale is not None and p_max is None:
        cure = "without a cap one client may have any probability"
        _validate.fail("selection.p_max", p_max, "must be given with scale", cure)
    return _coins("poisson", score, cohort, p_max, False, seed, scale)


def fixed_size(cohort: int, *, seed: int | None = None) -> Selector:
    """A uniform subset of exactly m of the clients that hold data."""
    cohort = whole_cohort(cohort)

    def prepare(sizes: np.ndarray) -> np.ndarray:
        return holders(sizes, cohort)

    def draw(state: State, numbers: np.random.Generator, round: int):
        members = state.prepared
        clients = members[draws.subset(numbers, len(members), cohort)]
        return clients, np.full(cohort, cohort / len(members))

    def inclusion(state: State) -> np.ndarray:
        return (state.sizes > 0) * (cohort / len(state.prepared))

    def event(state: State, z: float, rounds: int) -> Claim:
        # Sensitivity 2 C s_max: one contribution goes and another comes. Zero-out is
        # one of the replacements, so the claim covers it, with room to spare.
        gaussian = dp_accounting.GaussianDpEvent(z / 2)
        sampled = dp_accounting.SampledWithoutReplacementDpEvent(
            len(state.prepared), cohort, gaussian
        )
        composed = dp_accounting.SelfComposedDpEvent(sampled, rounds)
        rate = cohort / len(state.prepared)
        return Claim(composed, Relation.REPLACE_ONE, REPLACE, rate, True)

    return make(
        "fixed_size",
        cohort,
        prepare,
        draw,
        event,
        lambda state: f"a uniform subset of {cohort} of {len(state.prepared)} clients",
        inclusion=inclusion,
        stream="cohort",
        law="subset",
        exponent=0.0,
        seed=seed,
    )


def cyclic(cohort: float, *, bands: int, seed: int | None = None) -> Selector:
    """Round r throws coins in group r mod b of a fixed random partition of all clients.

    A client's rounds lie b or more apart whatever happens (dropout, a restart: the
    group is a function of the round), which noise correlated over b rounds needs
    (`trustml.privacy.correlated_noise`). It is `sampling.cyclic_poisson` of clients.

    Args:
      cohort: m, at most K/b.
      bands: b; 1 is `uniform`, clients without data included.
      seed: see `poisson`.

    Returns:
      A selector whose `Cohort.inclusion` is m/K, the chance over partitions; within its
      turn a client has b m/K, which is what is accounted.

    Raises:
      ValueError: naming field, value, bound and cure.
    """
    cohort = _validate.positive("selection.cohort", cohort, "20 is a start")
    bands = _validate.integer_at_least("selection.bands", bands, 1, "1 is uniform")
    found, secret = _seed(seed)

    def prepare(sizes: np.ndarray) -> sampling.Sampler:
        if cohort * bands > len(sizes):
            bound = f"exceeds clients/bands = {len(sizes) / bands:g}"
            cure = "lower cohort or bands"
            _validate.fail("selection.cohort", cohort, bound, cure)
        return sampling.cyclic_poisson(
            len(sizes), cohort, bands=bands, physical_batch_size=1, seed=found
        )

    def draw(state: State, numbers: Any, round: int):
        clients = state.prepared.draw(round)
        return clients, np.full(len(clients), cohort / len(state.sizes))

    def event(state: State, z: float, rounds: int) -> Claim:
        relation = Relation.REPLACE_SPECIAL
        released = state.prepared.event(z, 1.0, rounds, relation)
        return Claim(released, relation, ZERO_OUT, state.prepared.sample_rate, True)

    def resize(state: State, sizes: np.ndarray) -> State:
        # The partition is of clients, not of data: the same one as long as they are.
        return State(sizes, state.prepared)

    made = make(
        "cyclic",
        cohort,
        prepare,
        draw,
        event,
        lambda state: f"coins of mean {cohort:g} in group (round mod {bands})",
        inclusion=lambda state: np.full(len(state.sizes), cohort / len(state.sizes)),
        resize=resize,
        exponent=0.0,
    )
    return made._replace(seed=found, secret=secret, apart=bands)


def make(
    name: str,
    cohort: float,
    prepare: Callable[[np.ndarray], Any],
    draw: Callable[..., tuple[np.ndarray, np.ndarray]],
    event: Callable[[State, float, int], Claim | NoEvent],
    describe: Callable[[State], str],
    *,
    inclusion: Callable[[State], np.ndarray | None] = lambda state: None,
    observe: Callable[..., State] | None = None,
    observed: Callable[[np.ndarray], Any] | None = None,
    resize: Callable[[State, np.ndarray], State] | None = None,
    stream: str | None = None,
    law: str = "",
    exponent: float | None = None,
    seed: int | None = None,
) -> Selector:
    """A selector of what is its own: how to prepare, draw, account and describe.

    Args:
      name: see `Selector`, like the others.
      cohort: m.
      prepare: (sizes) -> what draws need, once for these sizes.
      draw: (State, the round's numbers, round) -> (clients, inclusion), any order.
      event: (State, noise multiplier, rounds) -> Claim or NoEvent; both numbers > 0.
      describe: (State) -> sentence.
      inclusion: see `Selector`.
      observe: see `Selector`; None: what clients report changes nothing.
      observed: (sizes) -> what is known before the first report.
      resize: None: prepare anew, keep what was observed.
      stream: name of the random numbers; None: nothing is drawn.
      law: see `Selector`.
      exponent: see `Selector`.
      seed: None for 128 bits from the OS.
    """
    found, secret = _seed(seed) if stream else (None, False)

    def init(sizes: npt.ArrayLike) -> State:
        sizes = probabilities.check_sizes(sizes)
        known = None if observed is None else observed(sizes)
        return State(sizes, prepare(sizes), known)

    def resized(state: State, sizes: npt.ArrayLike) -> State:
        sizes = probabilities.check_sizes(sizes)
        if len(sizes) != len(state.sizes):
            bound = f"are not the {len(state.sizes)} there were"
            cure = "start with all clients, at size 0 where they come later"
            _validate.fail("clients", len(sizes), bound, cure)
        if resize is not None:
            return resize(state, sizes)
        return State(sizes, prepare(sizes), state.observed)

    def select(state: State, round: int) -> tuple[Cohort, State]:
        round = _validate.integer_at_least("round", round, 0, "rounds count from 0")
        numbers = None
        if stream is not None and found is not None:
            numbers = draws.generator(found, stream, round)
        clients, inclusion = draw(state, numbers, round)
        clients = np.asarray(clients, np.int64)
        order = np.argsort(clients, kind="stable")
        inclusion = np.asarray(inclusion, np.float64)
        return Cohort(round, clients[order], inclusion[order]), state

    def kept(state: State, round: int, clients, loss, seconds) -> State:
        return state

    def worth(state: State, noise_multiplier: float, rounds: int) -> Claim | NoEvent:
        off = "set privacy.enabled=False to train without privacy"
        z = _validate.positive("privacy.noise_multiplier", noise_multiplier, off)
        rounds = _validate.integer_at_least("rounds", rounds, 1, "take a round or more")
        return event(state, z, rounds)

    return Selector(
        name=name,
        cohort=cohort,
        init=init,
        resize=resized,
        select=select,
        observe=kept if observe is None else observe,
        listens=observe is not None,
        inclusion=inclusion,
        event=worth,
        describe=describe,
        law=law,
        exponent=exponent,
        seed=found,
        secret=secret,
    )


def unamplified(state: State, z: float, rounds: int) -> Claim:
    """Every round as if the client took part in it for certain."""
    gaussian = dp_accounting.GaussianDpEvent(z)
    composed = dp_accounting.SelfComposedDpEvent(gaussian, rounds)
    return Claim(composed, Relation.REPLACE_SPECIAL, ZERO_OUT, 1.0, False)


def holders(sizes: np.ndarray, cohort: int) -> np.ndarray:
    """The clients that hold data, if there are enough for a cohort."""
    members = np.flatnonzero(sizes)
    if cohort > len(members):
        bound = f"exceeds the {len(members)} clients that hold data"
        _validate.fail("selection.cohort", cohort, bound, "lower it")
    return members


def whole_cohort(cohort: int) -> int:
    """`cohort`, if it is an integer >= 1."""
    cure = "this rule's cohorts have one integer size"
    return _validate.integer_at_least("selection.cohort", cohort, 1, cure)


def _coins(
    name: str,
    score: probabilities.Score,
    cohort: float,
    p_max: float | None,
    default_cap: bool,
    seed: int | None,
    scale: float | None = None,
) -> Selector:
    cohort = _validate.positive("selection.cohort", cohort, "20 is a start")
    given = None if p_max is None else probabilities.check_cap(p_max)

    def prepare(sizes: np.ndarray) -> coins.Index:
        found, cap = probabilities.histogram(sizes), given
        if cap is None and default_cap:
            cap = probabilities.default_cap(cohort, found.clients)
        if scale is None:
            solved = probabilities.solve(score, found, cohort, p_max=cap)
        else:
            solved = probabilities.fixed_scale(score, found, scale, p_max=cap or 1.0)
        return coins.index(solved, sizes)

    def draw(state: State, numbers: np.random.Generator, round: int):
        return coins.throw(numbers, state.prepared, state.sizes)

    def event(state: State, z: float, rounds: int) -> Claim:
        found = state.prepared.probabilities
        rate = found.largest if scale is None else found.p_max
        gaussian = dp_accounting.GaussianDpEvent(z)
        sampled = dp_accounting.PoissonSampledDpEvent(rate, gaussian)
        composed = dp_accounting.SelfComposedDpEvent(sampled, rounds)
        if scale is not None:
            relation, adjacency = Relation.ADD_OR_REMOVE_ONE, ADD_REMOVE
        else:
            relation, adjacency = Relation.REPLACE_SPECIAL, ZERO_OUT
        return Claim(composed, relation, adjacency, rate, rate < 1)

    def describe(state: State) -> str:
        found = state.prepared.probabilities
        cap = f", at most {found.p_max:.4g}" if found.p_max < 1 else ""
        return (
            f"coins, p = {found.scale:.4g} * {score.name}{cap}: {found.cohort:g} of "
            f"{found.clients} clients expected, the likeliest with {found.largest:.4g}"
        )

    return make(
        name,
        cohort,
        prepare,
        draw,
        event,
        describe,
        inclusion=lambda state: state.prepared.probabilities.of(state.sizes),
        stream="cohort",
        law="coins",
        exponent=score.exponent,
        seed=seed,
    )


def _seed(seed: int | None) -> tuple[int, bool]:
    if seed is None:
        return secrets.randbits(128), True
    return rng.check_seed("selection.seed", seed), False
