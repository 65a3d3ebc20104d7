"""Selection by what clients reported: power-of-choice and Oort.

Both look at the losses of earlier rounds, so who is drawn tells of the data: `event` is
refused, with that reason. Nothing is divided by an inclusion probability either; there
is none (`Cohort.inclusion` is NaN).

`power_of_choice(m, d)`: of d candidates, drawn with inclusion min(1, c n_k), the m of
highest reported loss; who never reported comes first. The original asks candidates for
their loss at the current model; this is its variant of reported losses.

`oort(m)`: with r the round from 1, l_k the last round of k (from 1), t_k its seconds,

    u_k = n_k loss_k                       cut at their 95% quantile, then scaled
    s_k = (u_k - min u) / (max u - min u) + sqrt(0.1 log(r) / l_k)
    s_k = s_k (T / t_k)^alpha              where t_k > T

A share 1 - epsilon of the cohort is drawn in proportion to s_k among those whose s_k
reaches 95% of the cut-off, the rest in proportion to n_k among clients never seen;
epsilon falls from 0.9 by 0.98 a round to 0.2. loss_k is to be the root mean square of
the losses of the client's examples. T is fixed here; the original moves it.

Example::

    selector = utility.oort(50, seed=0)
    state = selector.init(sizes)
    cohort, state = selector.select(state, round)
    ...
    state = selector.observe(state, round, cohort.clients, loss, seconds)

References: https://arxiv.org/abs/2010.01243 (power-of-choice),
https://arxiv.org/abs/2010.06081 (Oort; the staleness term, the quantile and the
constants as in the authors' programs, github.com/SymbioticLab/Oort).
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import typing as npt

from trustml import _validate
from trustml.federated import coins, probabilities, selection

_REFUSED = selection.NoEvent(
    "the choice depends on clients' losses, which come from their data: there is no "
    "sampling event, and reporting losses is a release of its own"
)
_KEPT, _CUT, _STALENESS = 0.95, 0.95, 0.1
_EXPLORED, _DECAY, _LEAST = 0.9, 0.98, 0.2


class Observed(NamedTuple):
    """What clients reported last; NaN and -1 where they never did. NOT private.

    NaN beside a round: asked then, and the report was no number.

    Attributes:
      loss: float32[K].
      seconds: float32[K].
      last: int32[K] round of the report.
    """

    loss: Float[np.ndarray, " K"]
    seconds: Float[np.ndarray, " K"]
    last: Int[np.ndarray, " K"]


def power_of_choice(
    cohort: int, *, candidates: int, seed: int | None = None
) -> selection.Selector:
    """The m clients of highest reported loss among d candidates drawn by size.

    Args:
      cohort: m.
      candidates: d >= m; where fewer clients hold data, all of them are candidates.
      seed: see `selection.poisson`.

    Raises:
      ValueError: naming field, value, bound and cure.
    """
    cohort = selection.whole_cohort(cohort)
    wanted = _validate.integer_at_least("selection.candidates", candidates, 1)
    if wanted < cohort:
        bound = f"must be at least cohort={cohort}"
        _validate.fail("selection.candidates", wanted, bound, "2 cohort is usual")

    def prepare(sizes: np.ndarray) -> np.ndarray:
        holders = len(selection.holders(sizes, cohort))
        if wanted >= holders:
            return (sizes > 0).astype(np.float64)
        return probabilities.solve(probabilities.power(1.0), sizes, wanted).of(sizes)

    def draw(state: selection.State, numbers: np.random.Generator, round: int):
        found = coins.systematic(numbers, state.prepared)
        known: Observed = state.observed
        loss = known.loss[found]
        unknown = np.where(known.last[found] < 0, np.inf, -np.inf)
        # Ties, such as of all who were never asked, are broken by chance.
        order = np.lexsort(
            (numbers.random(len(found)), -np.where(np.isnan(loss), unknown, loss))
        )
        return found[order[:cohort]], np.full(cohort, np.nan)

    return selection.make(
        "power_of_choice",
        cohort,
        prepare,
        draw,
        _refuse,
        lambda state: f"{cohort} of highest loss of {wanted} candidates drawn by size",
        observe=observe,
        observed=_unknown,
        stream="candidates",
        seed=seed,
    )


def oort(
    cohort: int,
    *,
    preferred_seconds: float | None = None,
    alpha: float = 2.0,
    seed: int | None = None,
) -> selection.Selector:
    """Guided selection by statistical utility and speed; see the module docstring.

    Args:
      cohort: m.
      preferred_seconds: T; None: slow clients are not held back.
      alpha: exponent of the penalty for slow ones.
      seed: see `selection.poisson`.

    Raises:
      ValueError: naming field, value, bound and cure.
    """
    cohort = selection.whole_cohort(cohort)
    if preferred_seconds is not None:
        cure = "leave it out not to penalise slow clients"
        _validate.positive("selection.preferred_seconds", preferred_seconds, cure)
    alpha = _validate.non_negative("selection.alpha", alpha, "2 is usual")

    def prepare(sizes: np.ndarray) -> None:
        selection.holders(sizes, cohort)

    def draw(state: selection.State, numbers: np.random.Generator, round: int):
        known: Observed = state.observed
        asked, holds = known.last >= 0, state.sizes > 0
        mute = np.isnan(known.loss)
        seen = np.flatnonzero(asked & ~mute & holds)
        unseen = np.flatnonzero(~asked & holds)
        broken = np.flatnonzero(asked & mute & holds)
        epsilon = max(_EXPLORED * _DECAY**round, _LEAST)
        exploit = min(int(cohort * (1 - epsilon)), len(seen))
        # Who is missing on one side is taken on the other, and last from the broken.
        exploit = min(max(exploit, cohort - len(unseen)), len(seen))
        fresh = min(cohort - exploit, len(unseen))

        def by_size(clients, count):
            weights = state.sizes[clients].astype(np.float64)
            return clients[coins.successive(numbers, weights, count)]

        explored = by_size(unseen, fresh)
        scores = score(known, state.sizes, seen, round, preferred_seconds, alpha)
        picked = _pick(numbers, scores, exploit)
        rest = by_size(broken, cohort - exploit - fresh)
        clients = np.concatenate([explored, seen[picked], rest])
        return clients, np.full(cohort, np.nan)

    return selection.make(
        "oort",
        cohort,
        prepare,
        draw,
        _refuse,
        lambda state: f"{cohort} clients by reported loss and speed, with exploration",
        observe=observe,
        observed=_unknown,
        stream="exploited",
        seed=seed,
    )


def score(
    known: Observed,
    sizes: Int[np.ndarray, " K"],
    clients: Int[np.ndarray, " m"],
    round: int,
    preferred_seconds: float | None,
    alpha: float,
) -> Float[np.ndarray, " m"]:
    """Oort's s_k of clients that have reported; `round` counts from 0."""
    if not len(clients):
        return np.zeros(0)
    use = sizes[clients] * known.loss[clients].astype(np.float64)
    # An empirical quantile that is one of the values: half the points lie beyond none.
    use = np.minimum(use, np.quantile(use, _KEPT, method="lower"))
    spread = float(np.ptp(use))
    scaled = (use - use.min()) / spread if spread > 0 else np.ones(len(use))
    stale = np.sqrt(_STALENESS * np.log(round + 1) / (known.last[clients] + 1))
    scores = scaled + stale
    if preferred_seconds is not None:
        seconds = known.seconds[clients].astype(np.float64)
        slow = seconds > preferred_seconds
        scores[slow] *= (preferred_seconds / seconds[slow]) ** alpha
    return scores


def observe(
    state: selection.State,
    round: int,
    clients: Int[np.ndarray, " m"],
    loss: npt.ArrayLike,
    seconds: npt.ArrayLike,
) -> selection.State:
    """The state after a cohort has reported.

    Args:
      state: before.
      round: of the report.
      clients: who reports; may be fewer than the cohort.
      loss: float[m] >= 0. Where a report is not finite, or negative, the loss of that
        client counts as unknown, and it is asked again after all others.
      seconds: float[m].

    Raises:
      ValueError: where the lengths differ.
    """
    loss = np.asarray(loss, np.float32)
    seconds = np.asarray(seconds, np.float32)
    if loss.shape != np.shape(clients) or seconds.shape != np.shape(clients):
        bound = f"and seconds{list(seconds.shape)} must be one for each client"
        _validate.fail("loss", list(loss.shape), bound)
    good = np.isfinite(loss) & (loss >= 0)
    known: Observed = state.observed
    out = Observed(known.loss.copy(), known.seconds.copy(), known.last.copy())
    out.loss[clients] = np.where(good, loss, np.nan)
    out.seconds[clients] = np.where(good, seconds, np.nan)
    out.last[clients] = round
    return state._replace(observed=out)


def _pick(
    numbers: np.random.Generator, scores: np.ndarray, count: int
) -> Int[np.ndarray, " count"]:
    """`count` positions in proportion to the score, of those near the best `count`."""
    if not count:
        return np.zeros(0, np.int64)
    cut = np.partition(scores, len(scores) - count)[len(scores) - count]
    near = np.flatnonzero(scores >= _CUT * cut)
    return near[coins.successive(numbers, scores[near], count)]


def _unknown(sizes: np.ndarray) -> Observed:
    never = np.full(len(sizes), np.nan, np.float32)
    return Observed(never, never.copy(), np.full(len(sizes), -1, np.int32))


def _refuse(state: Any, z: float, rounds: int) -> selection.NoEvent:
    return _REFUSED
