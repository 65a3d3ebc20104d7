"""Clients of different chances and weights: whose epsilon is the largest.

A client of inclusion p and weight s sees a Poisson-sampled Gaussian of rate p and
multiplier z s_max / s. Epsilon grows with both. Under 1/p weights neither end decides
in general: a seldom client counts for more (Fay et al. 2024). So epsilon is the largest
over the distinct (p, s), of which there are as many as sizes; hence a search that asks
the accountant for few of them.

Dimension key: K clients.

Example::

    p_K = selector.inclusion(state)
    s_K = weighting.horvitz_thompson(target, p_K).of(np.arange(K), sizes)
    found = user_classes.worst(p_K, s_K, z, rounds, delta=1e-6)
    found.epsilon, found.inclusion, found.weight

References: https://arxiv.org/abs/2307.10187.
"""

import heapq
import os
from typing import NamedTuple

import dp_accounting
import numpy as np
from jaxtyping import Float
from numpy import typing as npt

from trustml import _validate
from trustml.privacy import accounting, calibration

Relation = dp_accounting.NeighboringRelation

_ROUGH = 16  # classes whose epsilon is estimated before any is computed


class Worst(NamedTuple):
    """The class of clients that decides.

    Attributes:
      epsilon: theirs, an upper bound for everybody's.
      inclusion: their p.
      weight: their s.
      evaluations: how often the accountant was asked.
      exact: False where `epsilon` bounds several classes together.
    """

    epsilon: float
    inclusion: float
    weight: float
    evaluations: int
    exact: bool


def worst(
    inclusion: npt.ArrayLike,
    weights: npt.ArrayLike,
    noise_multiplier: float,
    rounds: int,
    *,
    delta: float,
    accountant: str = "pld",
    tolerance: float = 1e-3,
    cache_dir: str | os.PathLike | None = None,
) -> Worst:
    """The largest epsilon over clients with their own p_k and s_k, drawn by coins.

    Epsilon grows with p and with s, so only classes matter that no other exceeds in
    both. Along these p rises and s falls; the p of one end with the s of the other
    bounds all between, and ranges are halved from the worst bound on until a single
    class has it, or bound and class agree up to `tolerance`.

    Args:
      inclusion: p_k in [0, 1].
      weights: s_k >= 0; s_max is the largest of a client that takes part at all.
      noise_multiplier: z, noise_stddev / (C s_max).
      rounds: T >= 1.
      delta: in (0, 1).
      accountant: 'pld' or 'rdp'.
      tolerance: relative; 0 for the exact maximum.
      cache_dir: see `calibration.evaluate`.

    Raises:
      ValueError: for values out of range, or where nobody ever contributes.
    """
    rates, scaled = _frontier(inclusion, weights)
    z = _validate.positive("privacy.noise_multiplier", noise_multiplier)
    rounds = _validate.integer_at_least("rounds", rounds, 1)
    largest = float(scaled[0])
    known: dict[tuple[int, int], float] = {}

    def event(low: int, high: int) -> dp_accounting.DpEvent:
        """Of classes low..high: the p of the last with the s of the first."""
        gaussian = dp_accounting.GaussianDpEvent(z * largest / float(scaled[low]))
        sampled = dp_accounting.PoissonSampledDpEvent(float(rates[high]), gaussian)
        return dp_accounting.SelfComposedDpEvent(sampled, rounds)

    def bound(low: int, high: int) -> float:
        if (low, high) not in known:
            known[low, high] = calibration.evaluate(
                event(low, high), delta, Relation.REPLACE_SPECIAL, accountant, cache_dir
            )
        return known[low, high]

    # The rough maximum is where to look first: a class found there is a lower bound.
    grid = np.unique(np.linspace(0, len(rates) - 1, _ROUGH).astype(int)).tolist()
    rough = [
        accounting.rough_epsilon(event(k, k), delta, Relation.REPLACE_SPECIAL)
        for k in grid
    ]
    at = grid[int(np.argmax(rough))]
    best, end = bound(at, at), len(rates) - 1
    heap = [(-bound(0, end), 0, end)]
    while True:
        negative, low, high = heapq.heappop(heap)
        if low == high:
            best, at = -negative, low
        if low == high or -negative <= best * (1 + tolerance):
            return Worst(
                -negative, float(rates[at]), float(scaled[at]), len(known), low == high
            )
        middle = (low + high) // 2
        for half in ((low, middle), (middle + 1, high)):
            heapq.heappush(heap, (-bound(*half), *half))


def _frontier(
    inclusion: npt.ArrayLike, weights: npt.ArrayLike
) -> tuple[Float[np.ndarray, " classes"], Float[np.ndarray, " classes"]]:
    """Classes that no other exceeds in both, p rising and s falling."""
    p = np.asarray(inclusion, np.float64).ravel()
    s = np.asarray(weights, np.float64).ravel()
    if p.shape != s.shape:
        bound = f"must be one for each of the {len(p)} clients"
        _validate.fail("weights", len(s), bound)
    wrong = ~((p >= 0) & (p <= 1))
    if wrong.any():
        _validate.fail("inclusion", float(p[wrong][0]), "must lie between 0 and 1")
    wrong = ~((s >= 0) & np.isfinite(s))
    if wrong.any():
        _validate.fail("weights", float(s[wrong][0]), "must be a finite number >= 0")
    heard = (p > 0) & (s > 0)
    if not heard.any():
        cure = "give one client a chance and a weight"
        _validate.fail("weights", 0.0, "are zero for all clients", cure)
    p, s = p[heard], s[heard]
    # From the largest p down, a class counts where its s is a new record.
    order = np.lexsort((-s, -p))
    p, s = p[order], s[order]
    before = np.maximum.accumulate(np.concatenate([[-np.inf], s[:-1]]))
    record = s > before
    return p[record][::-1], s[record][::-1]
