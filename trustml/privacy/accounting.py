"""Privacy loss: (epsilon, delta) of an event; where dp-accounting's conventions end.

An event says what was released (`dp_accounting.DpEvent`). In this library every
Gaussian inside an event holds

    noise_multiplier = noise_stddev / S,   S = sensitivity under the relation at hand

(S = C under ADD_OR_REMOVE_ONE and REPLACE_SPECIAL, 2C under REPLACE_ONE, for clipping
to C). dp-accounting 0.6.0 does not agree with itself there: under REPLACE_ONE its
`RdpAccountant` takes stddev / S, but its `PLDAccountant` takes stddev / C and doubles
the sensitivity. That is put right here and nowhere else; `gaussian_delta`, the closed
form of Gaussian DP, is the test of both.

| event | relation | PLD | RDP |
|---|---|---|---|
| Gaussian | any | yes | yes |
| PoissonSampled(Gaussian) | add/remove, special | yes | yes |
| PoissonSampled(Gaussian) | replace-one | yes | no |
| SampledWithoutReplacement(Gaussian) | replace-one | yes, own | yes |
| TruncatedSubsampledGaussian | any (its N is public) | yes | no |
| BallsInBins(Gaussian) | not replace-one | Monte Carlo, own | no |
| DiscreteGaussian | any | no | yes |
| PoissonSampled(DiscreteGaussian) | add/remove, special | no | yes, whole orders |

Monte Carlo: an upper confidence limit at level 0.99 over the accountant's own draws,
never the mean (`trustml.privacy.balls_in_bins`); for epochs of one noise.

Own: with q = m/N one step is dominated by the pair whose profile, for e >= 0, is

    h(e)  = H_e( (1-q) N(0, z^2) + q N(1, z^2)  ||  N(0, z^2) ),
    h(-e) = 1 - exp(-e) + exp(-e) h(e)

(Zhu, Dong and Wang 2022, https://arxiv.org/abs/2106.08567, subset sampling under
replacement). The widespread shortcut, to compose the Poisson add and remove pairs at
stddev/2C and to take the larger epsilon, is exact for one step and too small for
several: all other records may sit at either end of the ball, at every step anew, in
answer to what was released before. At q = 0.01, z = 1, 1000 steps, delta = 1e-5 the
shortcut says 1.83, this bound 2.20 (Lebeda et al. 2024,
https://arxiv.org/abs/2405.20769, on this and other pitfalls).

PLD values are upper bounds; losses are rounded to a grid of 1e-4 (coarser where epsilon
exceeds about 60, where no guarantee is left to be precise about).

Example::

    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(
            0.01, dp_accounting.GaussianDpEvent(1.0)), 1000)
    relation = accounting.relation('add_or_remove_one')
    accounting.epsilon(event, 1e-5, relation)                      # 1.828
    accounting.epsilon(event, 1e-5, relation, accountant='rdp')    # 2.101
"""

import contextlib
import functools
import importlib.metadata
import logging
import math
from collections.abc import Iterator
from typing import Any

import dp_accounting
import numpy as np
from dp_accounting import pld, rdp
from dp_accounting.pld import pld_pmf, privacy_loss_mechanism
from scipy import special

from trustml import _validate
from trustml.privacy import balls_in_bins, discrete_gaussian

Event = dp_accounting.DpEvent
Relation = dp_accounting.NeighboringRelation

ACCOUNTANTS = ("pld", "rdp", "monte_carlo")
DISCRETIZATION = 1e-4
# Named in cache keys; raise the number whenever a result of this module may change.
VERSION = f"1/dp-accounting-{importlib.metadata.version('dp-accounting')}"

_TRUNCATED = dp_accounting.TruncatedSubsampledGaussianDpEvent
_IN_BINS = balls_in_bins.BallsInBinsDpEvent
_DISCRETE = discrete_gaussian.DiscreteGaussianDpEvent
_RELATIONS = {member.name.lower(): member for member in Relation}
# Discrete noise on a sample has the moments of a Gaussian at whole orders only.
_WHOLE_ORDERS = [*range(2, 257), *range(320, 1025, 64), 1536, 2048]
_ROUGH_ORDERS = [*range(2, 13), 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 256, 1024]


def relation(value: Any) -> Relation:
    """The neighbouring relation called `value` (a name, or the enum's member itself).

    Raises:
      ValueError: if there is no such relation; there is no default.
    """
    if isinstance(value, Relation):
        return value
    name = value.lower() if isinstance(value, str) else value
    return _RELATIONS[_validate.one_of("privacy.relation", name, _RELATIONS)]


def epsilon(
    event: Event, delta: float, relation: Relation, accountant: str = "pld"
) -> float:
    """Smallest known epsilon such that `event` is (epsilon, delta)-DP; maybe inf.

    Args:
      event: composition of Gaussian releases, see the module docstring.
      delta: in (0, 1).
      relation: neighbouring relation that the event's multipliers refer to.
      accountant: 'pld' (tight), 'rdp' (fast, looser), or 'monte_carlo' for what neither
        of them covers.

    Raises:
      ValueError: if the accountant does not cover the event under this relation.
    """
    delta = check_delta(delta)
    loss = _loss(event, relation, accountant, balls_in_bins.draws_for(delta))
    return float(loss.get_epsilon(delta))


def delta(
    event: Event, epsilon: float, relation: Relation, accountant: str = "pld"
) -> float:
    """Smallest known delta such that `event` is (epsilon, delta)-DP; see `epsilon`."""
    epsilon = _validate.non_negative("epsilon", epsilon, "epsilon is at least 0")
    return float(_loss(event, relation, accountant).get_delta(epsilon))


def unsupported(event: Event, relation: Relation, accountant: str) -> str | None:
    """Why `accountant` has no bound for the event, as a phrase; None where it has."""
    _validate.one_of("privacy.accountant", accountant, ACCOUNTANTS)
    parts = _parts(event)
    in_bins = [isinstance(part, _IN_BINS) for part, _ in parts]
    if (accountant == "monte_carlo") != any(in_bins):
        known = "epochs of balls in bins have no bound but by Monte Carlo"
        return known if any(in_bins) else "Monte Carlo is for balls in bins alone"
    if any(in_bins) and len(parts) > 1:
        return "Monte Carlo is for epochs of balls in bins with one noise"
    if any(in_bins) and relation is Relation.REPLACE_ONE:
        return "balls in bins have no bound under REPLACE_ONE"
    for part, _ in parts:
        if _is_discrete(part) and accountant != "rdp":
            return "discrete Gaussian noise has no bound but by RDP"
        without_replacement = isinstance(
            part, dp_accounting.SampledWithoutReplacementDpEvent
        )
        if without_replacement and relation is not Relation.REPLACE_ONE:
            return "sampling without replacement is covered under REPLACE_ONE only"
        if accountant == "rdp" and isinstance(part, _TRUNCATED):
            return "the RDP accountant has no truncated Poisson sampling"
        poisson = isinstance(part, dp_accounting.PoissonSampledDpEvent)
        if accountant == "rdp" and poisson and relation is Relation.REPLACE_ONE:
            return "the RDP accountant has no Poisson sampling under REPLACE_ONE"
    return None


def suited(event: Event, relation: Relation) -> str | None:
    """The first accountant that covers the event; None where none does."""
    covered = (a for a in ACCOUNTANTS if unsupported(event, relation, a) is None)
    return next(covered, None)


def check_delta(value: Any, field: str = "privacy.delta") -> float:
    """`value` as a float, if 0 < value < 1; `ValueError` otherwise."""
    cure = "usual is 1e-5, well below 1 / number of examples"
    return _validate.in_open_interval(field, value, 0, 1, cure)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Delta of mu-Gaussian DP; T releases with stddev s give mu = sqrt(T) * S / s.

    delta = Phi(-epsilon/mu + mu/2) - exp(epsilon) Phi(-epsilon/mu - mu/2)
    References: https://arxiv.org/abs/1905.02383, Corollary 2.13.
    """
    above = special.ndtr(-epsilon / mu + mu / 2)
    return float(above - math.exp(epsilon + special.log_ndtr(-epsilon / mu - mu / 2)))


def rough_epsilon(event: Event, delta: float, relation: Relation) -> float:
    """An estimate in milliseconds, to start a search from; NOT a guarantee.

    RDP of few orders; sampling without replacement and truncated sampling are read as
    Poisson, and that under REPLACE_ONE as more releases under add/remove (see below).
    """
    accountant = rdp.RdpAccountant(_ROUGH_ORDERS)
    for part, count in _parts(event):
        part = _continuous(part)
        if isinstance(part, _IN_BINS):
            part = dp_accounting.PoissonSampledDpEvent(1 / part.bins, part.event)
            count = count * round(1 / part.sampling_probability)
        if isinstance(part, _TRUNCATED):
            gaussian = dp_accounting.GaussianDpEvent(part.noise_multiplier)
            rate = part.sampling_probability
            part = dp_accounting.PoissonSampledDpEvent(rate, gaussian)
        if isinstance(part, dp_accounting.SampledWithoutReplacementDpEvent):
            rate = part.sample_size / part.source_dataset_size
            part = dp_accounting.PoissonSampledDpEvent(rate, part.event)
        elif relation is Relation.REPLACE_ONE and not _plain(part):
            # Chi-squared divergences of one step, a = (C / stddev)^2: q^2 (e^a - 1)
            # where the record comes or goes, 2 q^2 (e^a - e^-a) where it is replaced.
            z = 2 * _multiplier(part)
            more = 2 + 2 * math.exp(-(z**-2))
            gaussian = dp_accounting.GaussianDpEvent(z)
            rate = part.sampling_probability
            part = dp_accounting.PoissonSampledDpEvent(rate, gaussian)
            count = round(more * count)
        accountant.compose(part, count)
    return float(accountant.get_epsilon(delta))


def describe(event: Event) -> str:
    """The event as a canonical string, for cache keys and digests."""
    return " + ".join(f"{count} x {part!r}" for part, count in _parts(event))


class _PldLoss:
    """Composed privacy loss distribution, with the accountants' two questions."""

    def __init__(self, event: Event, relation: Relation):
        grid = _grid(event, relation)
        self._pld = functools.reduce(
            lambda left, right: left.compose(right),
            [_composed(part, count, relation, grid) for part, count in _parts(event)],
        )

    def get_epsilon(self, delta: float) -> float:
        return self._pld.get_epsilon_for_delta(delta)

    def get_delta(self, epsilon: float) -> float:
        return self._pld.get_delta_for_epsilon(epsilon)


class _MonteCarloLoss:
    """The same two questions, answered by upper confidence limits."""

    def __init__(self, event: Event, draws: int):
        ((part, epochs),) = _parts(event)
        self._losses = balls_in_bins.simulate(
            part.bins, part.event.noise_multiplier, epochs, draws
        )

    def get_epsilon(self, delta: float) -> float:
        return self._losses.epsilon(delta)

    def get_delta(self, epsilon: float) -> float:
        return self._losses.upper(epsilon)


def _loss(
    event: Event, relation: Relation, accountant: str, draws: int = 1 << 20
) -> Any:
    reason = unsupported(event, relation, accountant)
    if reason is not None:
        other = suited(event, relation)
        cure = f"use accountant={other!r}" if other else "change the relation"
        _validate.fail(
            "privacy.accountant", accountant, f"cannot answer: {reason}", cure
        )
    if accountant == "monte_carlo":
        return _MonteCarloLoss(event, draws)
    if accountant == "pld":
        return _PldLoss(event, relation)
    parts = _parts(event)
    sampled = any(_is_discrete(part) and not _plain(part) for part, _ in parts)
    orders = _WHOLE_ORDERS if sampled else None
    with quiet():
        loss = rdp.RdpAccountant(orders, neighboring_relation=relation)
        for part, count in parts:
            loss.compose(_continuous(part), count)
        return loss


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops dp-accounting's word that an RDP order is left out, which only loosens."""

    def keep(record: logging.LogRecord) -> bool:
        return "failed to converge" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _parts(event: Event) -> list[tuple[Event, int]]:
    """Distinct elementary events with their counts, in order of appearance."""
    counts: dict[Event, int] = {}
    for part, count in _walk(event, 1):
        counts[part] = counts.get(part, 0) + count
    if not counts:
        raise ValueError(f"event={event!r} releases nothing; compose a step or more.")
    return list(counts.items())


def _walk(event: Event, count: int) -> Iterator[tuple[Event, int]]:
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        yield from _walk(event.event, count * event.count)
        return
    if isinstance(event, dp_accounting.ComposedDpEvent):
        for part in event.events:
            yield from _walk(part, count)
        return
    sampled = (
        dp_accounting.PoissonSampledDpEvent,
        dp_accounting.SampledWithoutReplacementDpEvent,
        _IN_BINS,
    )
    inner = event.event if isinstance(event, sampled) else event
    known = (dp_accounting.GaussianDpEvent, _TRUNCATED)
    if isinstance(event, (_DISCRETE, dp_accounting.PoissonSampledDpEvent)):
        known = (*known, _DISCRETE)
    if not isinstance(inner, known):
        raise ValueError(
            f"event={event!r} is not a composition of (sampled) Gaussian releases; "
            "account for it with dp-accounting directly."
        )
    z = inner.noise_multiplier
    if not (z > 0 and math.isfinite(z)):
        raise ValueError(
            f"privacy.noise_multiplier={z!r} gives epsilon=inf; set "
            "privacy.enabled=False to train without privacy."
        )
    yield event, count


def _plain(part: Event) -> bool:
    return isinstance(part, (dp_accounting.GaussianDpEvent, _DISCRETE))


def _is_discrete(part: Event) -> bool:
    return isinstance(getattr(part, "event", part), _DISCRETE)


def _continuous(part: Event) -> Event:
    """The Gaussian with the RDP of a discrete one; what is not discrete, as it is."""
    if not _is_discrete(part):
        return part
    gaussian = dp_accounting.GaussianDpEvent(_multiplier(part))
    if _plain(part):
        return gaussian
    return dp_accounting.PoissonSampledDpEvent(part.sampling_probability, gaussian)


def _multiplier(part: Event) -> float:
    return getattr(part, "event", part).noise_multiplier


def _grid(event: Event, relation: Relation) -> float:
    """Width of the loss grid: 1e-4, or coarser where that would not fit in memory."""
    # One step's losses reach about 1/(2 z^2) + 10/z; the composed ones about epsilon.
    z = min(_multiplier(part) for part, _ in _parts(event))
    span = max(0.5 / z**2 + 10 / z, rough_epsilon(event, 1e-6, relation))
    return DISCRETIZATION * max(1.0, 2.0 ** math.ceil(math.log2(span / 64)))


def _composed(part: Event, count: int, relation: Relation, grid: float) -> Any:
    if _plain(part):
        # n releases with z are one with z / sqrt(n).
        return _one_step(_multiplier(part) / math.sqrt(count), 1.0, relation, grid)
    if isinstance(part, dp_accounting.PoissonSampledDpEvent):
        rate = part.sampling_probability
        if rate == 1.0:
            return _composed(part.event, count, relation, grid)
        return _one_step(_multiplier(part), rate, relation, grid).self_compose(count)
    if isinstance(part, _TRUNCATED):
        return _truncated(part, relation, grid).self_compose(count)
    rate = part.sample_size / part.source_dataset_size
    if rate == 1.0:
        return _composed(part.event, count, relation, grid)
    step = _without_replacement(_multiplier(part), rate, grid)
    return step.self_compose(count)


# One distribution holds up to a few million floats, and a curve of epsilon over steps
# or a second delta asks for the same one again.
@functools.lru_cache(maxsize=4)
def _one_step(z: float, rate: float, relation: Relation, grid: float) -> Any:
    # z = stddev / S. dp-accounting wants stddev / C and S = 2C under REPLACE_ONE.
    doubled = 2.0 if relation is Relation.REPLACE_ONE else 1.0
    return pld.privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=doubled * z,
        value_discretization_interval=grid,
        sampling_prob=rate,
        neighboring_relation=relation,
    )


@functools.lru_cache(maxsize=4)
def _truncated(part: Event, relation: Relation, grid: float) -> Any:
    # What is displaced by the record at hand is within: stddev / C here as well.
    doubled = 2.0 if relation is Relation.REPLACE_ONE else 1.0
    return pld.privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism(
        dataset_size=part.dataset_size,
        sampling_probability=part.sampling_probability,
        truncated_batch_size=part.truncated_batch_size,
        noise_multiplier=doubled * part.noise_multiplier,
        value_discretization_interval=grid,
        neighboring_relation=relation,
    )


@functools.lru_cache(maxsize=4)
def _without_replacement(z: float, rate: float, grid: float) -> Any:
    remove = privacy_loss_mechanism.GaussianPrivacyLoss(
        z,
        sensitivity=1,
        sampling_prob=rate,
        adjacency_type=privacy_loss_mechanism.AdjacencyType.REMOVE,
    )
    bounds = remove.connect_dots_bounds()
    reach = max(abs(bounds.epsilon_lower), abs(bounds.epsilon_upper))
    steps = math.ceil(reach / grid)
    losses = np.arange(steps + 1) * grid
    above = np.asarray(remove.get_delta_for_epsilon(losses))
    below = -np.expm1(-losses[1:]) + np.exp(-losses[1:]) * above[1:]
    profile = np.clip(np.concatenate([below[::-1], above]), 0.0, 1.0)
    pmf = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(
        grid, -steps, steps, profile
    )
    return pld.privacy_loss_distribution.PrivacyLossDistribution(pmf)
