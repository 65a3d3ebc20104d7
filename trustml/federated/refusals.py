"""What rounds refuse: parts that do not go together, cohorts that are none.

Some of it cannot be seen in what a round returns: noise that does not cover all that
the server is told, integers that overflow, sums that are equal to the bit in one order
of clients only. Hence it is an error where the rounds are made.

Dimension key: `K` clients, `M` clients of a cohort.

Example::

    refusals.check_parts(
        algorithm, aggregator, exact=True, gamma=lanes.GAMMA, population=100
    )
    refusals.check_cohort(chosen, population=100, private=False)
    total = refusals.divisor(aggregator, chosen, chosen.weights)
"""

from typing import Any

import numpy as np

from trustml import _validate
from trustml.federated.aggregation import chain
from trustml.federated.algorithms import base


def check_parts(
    algorithm: base.FederatedAlgorithm,
    aggregator: chain.Aggregator,
    *,
    exact: bool,
    gamma: float,
    population: int,
) -> None:
    """Raises where an algorithm and an aggregator do not go together, or with `exact`.

    Args:
      algorithm: what clients and server do.
      aggregator: what becomes of messages.
      exact: whether messages are summed in int32.
      gamma: in steps of.
      population: K.

    Raises:
      ValueError: where the aggregator adds noise, and the algorithm tells the server
        more than a message, or sums are exact; where sums are exact, and messages have
        no bound, or are put together by a rule that follows the order of rows; where
        the algorithm needs other weights, remembers what a link takes away, sends more
        than a direction through links that know of directions only, or was made for
        other clients.
    """
    if aggregator.release is not None and algorithm.reveals:
        raise ValueError(
            f"algorithm needs clients' exact {algorithm.reveals}, which a chain with "
            "noise does not give; use averaging.fedavg, or a chain without noise."
        )
    if algorithm.clients not in (0, population):
        bound = f"is not the {population} clients that there are"
        cure = "make the algorithm for all of them"
        _validate.fail("clients of the algorithm", algorithm.clients, bound, cure)
    rule = aggregator.rule
    if algorithm.fair and (rule.name != "mean" or rule.total is not None):
        over = "" if rule.total is None else f" over a constant {rule.total:g}"
        bound = (
            "is not the mean of those that are heard, and what the server keeps beside "
            "the model would no longer be the mean of what clients keep"
        )
        cure = "weigh by weighting.mean()"
        _validate.fail("weights", rule.name + over, bound, cure)
    if algorithm.beside and aggregator.bends:
        bound = (
            f"takes a message for one direction, and it holds {algorithm.beside} too"
        )
        cure = "leave that link out, or use averaging.fedavg"
        _validate.fail("aggregator", aggregator.bends, bound, cure)
    if algorithm.fair and aggregator.loses:
        bound = (
            "takes of messages what clients remember in full, and what the server "
            "keeps beside the model would no longer be the mean of theirs"
        )
        cure = "leave that link out, or use averaging.fedavg"
        _validate.fail("aggregator", aggregator.loses, bound, cure)
    if not exact:
        return
    # A message of P coordinates gains gamma sqrt(P) / 2 of L2 norm by rounding. Its
    # step, and where it is clamped, also follow the largest weight and the size of the
    # cohort, so one client moves how all others are rounded. Stacks are not summed.
    if aggregator.release is not None and aggregator.collect == "sum":
        _no_exact(
            f"rounds messages to multiples of gamma={gamma:g} after they are clipped, "
            "which the declared sensitivity does not cover",
            "sum with secure.modular_sum",
        )
    if algorithm.unbounded:
        _no_exact(
            f"sums multiples of gamma={gamma:g} in 32 bits, which hold "
            f"{2**31 * gamma:g} over all clients, and messages have "
            f"{algorithm.unbounded}, without a bound",
            "use averaging.fedavg",
        )
    if aggregator.ordered:
        _no_exact(
            "promises the same bits in any order of clients, which the last bits of "
            f"{aggregator.ordered} follow",
            "use robust.median",
        )


def check_cohort(
    chosen: Any, *, population: int, private: bool, remembers: bool = False
) -> None:
    """Raises if a cohort is not one of M clients, or has one twice where that matters.

    Args:
      chosen: `rounds.Chosen`.
      population: K.
      private: whether there is noise.
      remembers: whether clients have a memory, of which there is one.
    """
    numbers, m = np.asarray(chosen.numbers), len(chosen.numbers)
    for name in ("numbers", "sizes"):
        value = np.asarray(getattr(chosen, name))
        if len(value) and (value.dtype.kind not in "iu" or value.min() < 0):
            bound = "must be integers >= 0"
            _validate.fail(name, f"{value.dtype} from {value.min():g}", bound)
    for name in ("sizes", "weights", "arrived"):
        value = getattr(chosen, name)
        if value is not None and np.shape(value) != (m,):
            bound = f"must be one for each of the {m} clients"
            _validate.fail(name, f"array of shape {np.shape(value)}", bound)
    wrong = numbers[(numbers < 0) | (numbers >= population)]
    if wrong.size:
        bound = f"is none of the {population} clients"
        _validate.fail("numbers", int(wrong[0]), bound)
    if (private or remembers) and len(np.unique(numbers)) < m:
        why = "the noise is for one message" if private else "there is one memory"
        bound = f"holds a client twice, and {why} of each"
        _validate.fail("numbers", f"a cohort of {m}", bound, "take everybody once")


def divisor(aggregator: chain.Aggregator, chosen: Any, used: np.ndarray) -> float:
    """W of a round, if the chain was made for it and for these weights.

    Sizes, and with them weights, may change after a chain was made; the noise is for
    the largest weight that its rule knew.

    Args:
      aggregator: what becomes of messages.
      chosen: `rounds.Chosen`.
      used: float64[M], weights of those that are heard; 0 of others.
    """
    weights = np.asarray(chosen.weights, np.float64)
    rule, total = aggregator.rule, chosen.total
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if wrong.size:
        bound = f"of rule {rule.name!r} must be finite and >= 0"
        cure = "0 leaves a client out"
        _validate.fail(f"weights[{wrong[0]}]", float(weights[wrong[0]]), bound, cure)
    most = aggregator.most
    largest = float(weights.max(initial=0.0))
    if most is not None and largest > most * (1 + 1e-9):
        what = "secure sum" if aggregator.release is None else "noise"
        bound = f"must be at most {most:g}, which the {what} is made for"
        cure = "make the chain with the rule whose weights are largest"
        _validate.fail("weights", largest, bound, cure)
    if rule.total is None:
        # A Hajek rule may give 0 to many, and a cohort hold only these.
        lost = not largest and rule.name != "hajek"
        if lost and np.any(np.asarray(chosen.sizes) > 0):
            bound = f"of rule {rule.name!r} are zero for all {len(weights)} clients"
            _validate.fail("weights", 0.0, bound, "give one of them a weight")
        return float(used.sum()) or 1.0
    if total is None:
        cure = "give the total of the rule of this round"
        bound = f"says nothing of what divides by {rule.name}"
        _validate.fail("total", total, bound, cure)
    return _validate.positive("total", total, "select clients that count")


def _no_exact(bound: str, cure: str) -> None:
    _validate.fail("federated.exact", True, bound, f"set it to False, or {cure}")
