"""Selection of a number that is not left to chance: quotas, the largest, given lists.

| selector | rule |
|---|---|
| `systematic` | exactly m, each client with exactly its p_k |
| `stratified` | a quota for each stratum of clients by size, uniform within |
| `top_k` | the m that hold most, in every round |
| `trace` | given lists |

Inclusions of different clients depend on each other here, so that no accountant for
coins applies: a claim counts every round as if the client took part in it (`trace`: as
often as a client occurs).

Dimension key: K clients, m clients of a cohort.

Example::

    selector = quotas.systematic(100, probabilities.power(1.0), seed=0)
    state = selector.init(sizes)
    cohort, state = selector.select(state, round)                # always 100

References: Sarndal, Swensson and Wretman 1992, "Model assisted survey sampling".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy import typing as npt

from trustml import _validate
from trustml.federated import coins, probabilities, selection
from trustml.privacy import draws


def systematic(
    cohort: int,
    score: probabilities.Score | None = None,
    *,
    p_max: float | None = None,
    seed: int | None = None,
) -> selection.Selector:
    """Exactly m clients, client k with exactly p_k; see `coins.systematic`.

    Args:
      cohort: m, an integer.
      score: None: sqrt(n).
      p_max: None: 1.
      seed: see `poisson`.

    Raises:
      ValueError: naming field, value, bound and cure.
    """
    cohort, cap = selection.whole_cohort(cohort), probabilities.check_cap(p_max)
    score = probabilities.power(0.5) if score is None else score

    def prepare(sizes: np.ndarray) -> np.ndarray:
        return probabilities.solve(score, sizes, cohort, p_max=cap).of(sizes)

    def draw(state: selection.State, numbers: np.random.Generator, round: int):
        clients = coins.systematic(numbers, state.prepared)
        return clients, state.prepared[clients]

    return selection.make(
        "systematic",
        cohort,
        prepare,
        draw,
        selection.unamplified,
        lambda state: f"exactly {cohort} clients, systematic, p by {score.name}",
        inclusion=lambda state: state.prepared,
        stream="systematic",
        exponent=score.exponent,
        seed=seed,
    )


def stratified(
    cohort: int, *, strata: int = 10, seed: int | None = None
) -> selection.Selector:
    """Quotas over strata of clients sorted by size, a uniform subset within each.

    Strata differ by at most one client in number (10 are deciles), and quotas by at
    most one; what does not divide goes to the strata of the larger clients.

    Args:
      cohort: m, an integer, at least `strata`.
      strata: number of them.
      seed: see `poisson`.

    Raises:
      ValueError: naming field, value, bound and cure.
    """
    cohort = selection.whole_cohort(cohort)
    strata = _validate.integer_at_least("selection.strata", strata, 1, "10 is usual")
    if cohort < strata:
        bound = f"must be at most cohort={cohort}"
        _validate.fail("selection.strata", strata, bound, "every stratum needs a quota")
    quotas = [cohort // strata] * strata
    for place in range(strata - cohort % strata, strata):
        quotas[place] += 1

    def prepare(sizes: np.ndarray) -> list[np.ndarray]:
        members = selection.holders(sizes, cohort)
        order = members[np.argsort(sizes[members], kind="stable")]
        # The larger strata last, where the larger quotas are: no quota can exceed one.
        small, more = divmod(len(order), strata)
        ends = np.cumsum([small] * (strata - more) + [small + 1] * more)
        return np.split(order, ends[:-1])

    def draw(state: selection.State, numbers: np.random.Generator, round: int):
        parts = [
            (members[draws.subset(numbers, len(members), quota)], quota / len(members))
            for members, quota in zip(state.prepared, quotas, strict=True)
        ]
        inclusion = np.repeat([p for _, p in parts], quotas)
        return np.concatenate([clients for clients, _ in parts]), inclusion

    def inclusion(state: selection.State) -> np.ndarray:
        out = np.zeros(len(state.sizes))
        for members, quota in zip(state.prepared, quotas, strict=True):
            out[members] = quota / len(members)
        return out

    return selection.make(
        "stratified",
        cohort,
        prepare,
        draw,
        selection.unamplified,
        lambda state: f"{cohort} clients over {strata} strata of n, uniform in each",
        inclusion=inclusion,
        stream="strata",
        seed=seed,
    )


def top_k(cohort: int) -> selection.Selector:
    """The m clients that hold most, ties by id: the same ones in every round."""
    cohort = selection.whole_cohort(cohort)

    def prepare(sizes: np.ndarray) -> np.ndarray:
        members = selection.holders(sizes, cohort)
        order = np.lexsort((members, -sizes[members].astype(np.int64)))
        return np.sort(members[order[:cohort]])

    def draw(state: selection.State, numbers: Any, round: int):
        return state.prepared, np.ones(cohort)

    def inclusion(state: selection.State) -> np.ndarray:
        out = np.zeros(len(state.sizes))
        out[state.prepared] = 1.0
        return out

    return selection.make(
        "top_k",
        cohort,
        prepare,
        draw,
        selection.unamplified,
        lambda state: f"the {cohort} clients that hold most, in every round",
        inclusion=inclusion,
        law="certain",
    )


def trace(cohorts: Sequence[npt.ArrayLike]) -> selection.Selector:
    """Given lists of clients, one for each round.

    Args:
      cohorts: ids, distinct within a list. A claim on privacy holds where the lists
        were not made from the clients' data.

    Raises:
      ValueError: from `init` for an id that no client has, and when built for one that
        is twice in a round; from `select` for a round beyond the last.
    """
    lists = [np.sort(np.asarray(cohort, np.int64)) for cohort in cohorts]
    if not lists:
        _validate.fail("selection.trace", 0, "rounds are given", "give one or more")
    for number, ids in enumerate(lists):
        if np.any(ids[1:] == ids[:-1]):
            bound = "holds a client twice"
            _validate.fail(f"selection.trace[{number}]", ids.tolist(), bound)
    mean = float(np.mean([len(ids) for ids in lists]))

    def prepare(sizes: np.ndarray) -> None:
        ids = np.concatenate(lists)
        wrong = ids[(ids < 0) | (ids >= len(sizes))]
        if wrong.size:
            bound = f"is no client; there are {len(sizes)}"
            _validate.fail("selection.trace", int(wrong[0]), bound, "ids count from 0")

    def draw(state: selection.State, numbers: Any, round: int):
        if round >= len(lists):
            bound = f"is beyond the {len(lists)} rounds of the trace"
            _validate.fail("round", round, bound, "give a longer one")
        return lists[round], np.full(len(lists[round]), np.nan)

    def event(
        state: selection.State, z: float, rounds: int
    ) -> selection.Claim | selection.NoEvent:
        if rounds > len(lists):
            _validate.fail("rounds", rounds, f"exceed the trace of {len(lists)}")
        often = _most_visits(lists, rounds)
        if not often:
            return selection.NoEvent("the trace holds no client in these rounds")
        return selection.unamplified(state, z, often)

    return selection.make(
        "trace",
        mean,
        prepare,
        draw,
        event,
        lambda state: (
            f"given lists of {len(lists)} rounds, {mean:g} clients on average"
        ),
    )._replace(most=max(len(ids) for ids in lists))


def _most_visits(lists: Sequence[np.ndarray], rounds: int) -> int:
    """Most visits of a client in any `rounds` rounds on end; the first may be any."""
    clients = np.concatenate(lists)
    when = np.repeat(np.arange(len(lists)), [len(members) for members in lists])
    order = np.lexsort((when, clients))
    # Clients apart by more than any number of rounds; then windows are of one client.
    line = clients[order] * (2 * len(lists) + 1) + when[order]
    inside = np.searchsorted(line, line + rounds) - np.arange(len(line))
    return int(inside.max(initial=0))
