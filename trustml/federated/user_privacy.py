"""User-level privacy of a run: epsilon from the event of the selector that was run.

    S = sum_{k in cohort} s_k clip_C(Delta_k) + N(0, (z C s_max)^2 I), 0 <= s_k <= s_max

With s = 1 the client of largest p decides, which is why selection is capped. Where
weights differ, `user_classes.worst` finds the client that does.

The relation comes with the claim (`selection.Claim.adjacency`) and is named in every
result: zero-out with public sizes by default, dp-accounting's REPLACE_SPECIAL. Where
coins are thrown its epsilon is that of adding or removing a client.

Two numbers, never one: `epsilon` is of this run, this many clients and this noise;
`extrapolate` answers "what if there were N clients and cohorts of M", for simulations
whose noise was scaled down to their small cohort, and says so in its own name.

Where rounds differ (sizes that grow, a cap that moves) claims are composed, `compose`:
each period at its own largest p. Where clients drop out or are cut off by the clock,
`after_availability` says what remains of a claim.

Dimension key: K clients.

Example::

    claim = selector.event(state, z, rounds)
    found = user_privacy.account(claim, delta=1e-6)
    found.epsilon_as_run, found.adjacency
    print(user_privacy.explain(found))

References: https://arxiv.org/abs/1710.06963 (user-level DP-SGD);
https://arxiv.org/abs/2307.10187 (individual sampling rates).
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import dp_accounting
import numpy as np

from trustml import _validate
from trustml.federated import selection
from trustml.federated.aggregation import link
from trustml.privacy import accounting, calibration, discrete_gaussian

Relation = dp_accounting.NeighboringRelation


class UserPrivacy(NamedTuple):
    """What a run promises each client.

    Attributes:
      epsilon_as_run: of this population, sampler and noise; inf without a claim.
      delta: as asked for.
      event: that was accounted; None without a claim.
      relation: None without a claim.
      adjacency: what neighbours are, in words; why there is no claim, without one.
      rate: largest chance of a client in a round, or that of the worst class.
      amplified: whether sampling lowers epsilon.
      accountant: which answered.
    """

    epsilon_as_run: float
    delta: float
    event: dp_accounting.DpEvent | None
    relation: Relation | None
    adjacency: str
    rate: float
    amplified: bool
    accountant: str


class Extrapolated(NamedTuple):
    """A what-if, not a property of the run.

    Attributes:
      epsilon_extrapolated: for the population and cohort supposed.
      population: N.
      cohort: M.
      rate: largest inclusion there.
      noise_multiplier: there.
    """

    epsilon_extrapolated: float
    population: int
    cohort: float
    rate: float
    noise_multiplier: float


def account(
    claim: selection.Claim | selection.NoEvent,
    *,
    delta: float,
    accountant: str = "pld",
    cache_dir: str | os.PathLike | None = None,
) -> UserPrivacy:
    """(epsilon, delta) of what a selector claims; infinite where it claims nothing.

    Args:
      claim: of `Selector.event`, whose multiplier is noise_stddev / (C s_max), or of
        `compose`.
      delta: in (0, 1), well below 1 / clients.
      accountant: 'pld' or 'rdp'.
      cache_dir: see `calibration.evaluate`.

    Raises:
      ValueError: for a delta outside (0, 1), or an accountant without a bound.
    """
    delta = accounting.check_delta(delta)
    if isinstance(claim, selection.NoEvent):
        return UserPrivacy(
            np.inf, delta, None, None, claim.reason, 1.0, False, accountant
        )
    epsilon = calibration.evaluate(
        claim.event, delta, claim.relation, accountant, cache_dir
    )
    return UserPrivacy(
        epsilon,
        delta,
        claim.event,
        claim.relation,
        claim.adjacency,
        claim.rate,
        claim.amplified,
        accountant,
    )


def calibrate(
    selector: selection.Selector,
    state: selection.State,
    *,
    epsilon: float,
    delta: float,
    rounds: int,
    accountant: str = "pld",
    cache_dir: str | os.PathLike | None = None,
) -> float:
    """The noise multiplier z, noise_stddev / (C s_max), that gives this epsilon.

    Raises:
      ValueError: where the selector has no event (with its reason), or epsilon is out
        of reach.
    """
    first = check_claim(selector, state, rounds)

    def event(z: float) -> dp_accounting.DpEvent:
        return check_claim(selector, state, rounds, z).event

    return calibration.calibrate(
        event, epsilon, delta, first.relation, accountant, cache_dir
    )


def check_claim(
    selector: selection.Selector, state: selection.State, rounds: int, z: float = 1.0
) -> selection.Claim:
    """The claim of a selector.

    Raises:
      ValueError: with the selector's reason, where it has none.
    """
    claim = selector.event(state, z, rounds)
    if isinstance(claim, selection.NoEvent):
        cure = "use selection.capped_power, or set privacy.enabled=False"
        bound = f"has no guarantee: {claim.reason}"
        _validate.fail("selection", selector.name, bound, cure)
    return claim


def check_users(user: np.ndarray | None) -> None:
    """Raises where noise for one client is not noise for a person.

    Args:
      user: `ClientStore.user`; None where everybody is one client.

    Raises:
      ValueError: where a person has several clients.
    """
    if user is not None and len(np.unique(user)) < len(user):
        bound = f"owns several of the {len(user)} clients, and noise is for one"
        cure = "make one client of a person, or leave `user` out of the store"
        _validate.fail("user", "a person", bound, cure)


def of_release(
    selector: selection.Selector,
    state: selection.State,
    release: link.Release,
    rounds: int,
    *,
    fixed: bool = False,
) -> selection.Claim:
    """The claim of a chain with noise (`Aggregator.release`) in a run.

    Where a client may be there or not (`selection.ADD_REMOVE`), nothing else may depend
    on who is: else the claim is that of a client whose data are left out, the others
    and all sizes being known (`selection.ZERO_OUT`).

    Args:
      selector: who draws the cohorts.
      state: of it, with the sizes of the run.
      release: what noise the chain adds.
      rounds: of the run.
      fixed: whether weights, divisor and the sum itself depend on nobody else; not so
        where a secure sum fails without enough clients.

    Raises:
      ValueError: where the selector has no event, a chain is run for more rounds than
        it was made for, or clients come back too soon for its noise.
    """
    claim = check_claim(selector, state, rounds, release.noise_multiplier)
    if release.kind == "local":  # the server sees each report, and whose it is
        return selection.unamplified(state, release.noise_multiplier, rounds)
    if claim.adjacency == selection.ADD_REMOVE and not fixed:
        claim = claim._replace(
            relation=Relation.REPLACE_SPECIAL, adjacency=selection.ZERO_OUT
        )
    if release.kind == "discrete":  # PLD knows no discrete Gaussian; RDP bounds it
        if not discrete_gaussian.bounded(claim.event):
            bound = "has no bound with discrete Gaussian noise"
            cure = "use selection.uniform, or dp.central"
            _validate.fail("selection", selector.name, bound, cure)
        return claim._replace(event=discrete_gaussian.discrete(claim.event))
    if release.rounds is None:
        return claim
    if rounds > release.rounds:
        bound = f"exceeds the {release.rounds} rounds that the noise is made for"
        _validate.fail("rounds", rounds, bound, "make the chain for all rounds")
    if selector.apart < (release.min_separation or 1):
        bound = (
            f"may ask a client again after {selector.apart} round(s); the noise is for "
            f"{release.min_separation}"
        )
        cure = f"use selection.cyclic with bands={release.min_separation}"
        _validate.fail("selection", selector.name, bound, cure)
    gaussian = dp_accounting.GaussianDpEvent(release.noise_multiplier)
    relation = Relation.REPLACE_SPECIAL
    return selection.Claim(gaussian, relation, selection.ZERO_OUT, 1.0, False)


def compose(
    claims: Sequence[selection.Claim | selection.NoEvent],
) -> selection.Claim | selection.NoEvent:
    """Claims of consecutive rounds as one, each at its own largest probability.

    Raises:
      ValueError: where their relations differ, which have no common meaning.
    """
    if not claims:
        _validate.fail("claims", 0, "are composed", "give one or more")
    for claim in claims:
        if isinstance(claim, selection.NoEvent):
            return claim
    kept = [claim for claim in claims if isinstance(claim, selection.Claim)]
    first = kept[0]
    for claim in kept[1:]:
        if claim.adjacency != first.adjacency:
            bound = f"does not go with {first.adjacency!r} of the rounds before"
            cure = "use one selector throughout"
            _validate.fail("adjacency", claim.adjacency, bound, cure)
    event = dp_accounting.ComposedDpEvent([claim.event for claim in kept])
    rate = max(claim.rate for claim in kept)
    return first._replace(
        event=event, rate=rate, amplified=any(claim.amplified for claim in kept)
    )


def extrapolate(
    noise_multiplier: float,
    rounds: int,
    *,
    inclusion: float,
    clients: int,
    cohort: float,
    population: int,
    supposed_cohort: float,
    delta: float,
    accountant: str = "pld",
    cache_dir: str | os.PathLike | None = None,
) -> Extrapolated:
    """Epsilon if this run were one of N clients with cohorts of M, by coins.

    A simulation with cohorts of m and noise of multiplier z on their sum has the signal
    to noise of cohorts of M with multiplier z M/m, and a client's chance there is
    p (M/N) / (m/K).

    Args:
      noise_multiplier: z of the run, noise_stddev / (C s_max).
      rounds: T.
      inclusion: largest p of the run.
      clients: K of the run.
      cohort: m of the run.
      population: N, supposed.
      supposed_cohort: M, supposed.
      delta: in (0, 1).
      accountant: 'pld' or 'rdp'.
      cache_dir: see `calibration.evaluate`.

    Raises:
      ValueError: where the supposed chance exceeds 1, naming the largest M.
    """
    z = _validate.positive("privacy.noise_multiplier", noise_multiplier)
    cohort = _validate.positive("selection.cohort", cohort)
    supposed = _validate.positive("extrapolate.cohort", supposed_cohort)
    rounds = _validate.integer_at_least("rounds", rounds, 1)
    clients = _validate.integer_at_least("clients", clients, 1)
    population = _validate.integer_at_least("extrapolate.population", population, 1)
    rate = inclusion * (supposed / population) / (cohort / clients)
    if rate > 1:
        most = population * (cohort / clients) / inclusion
        bound = f"gives a client the chance {rate:.4g} in a round"
        cure = f"lower it to at most {most:g}"
        _validate.fail("extrapolate.cohort", supposed, bound, cure)
    scaled = z * supposed / cohort
    sampled = dp_accounting.PoissonSampledDpEvent(
        rate, dp_accounting.GaussianDpEvent(scaled)
    )
    event = dp_accounting.SelfComposedDpEvent(sampled, rounds)
    epsilon = calibration.evaluate(
        event, delta, Relation.REPLACE_SPECIAL, accountant, cache_dir
    )
    return Extrapolated(epsilon, population, supposed, rate, scaled)


def after_availability(
    claim: selection.Claim | selection.NoEvent,
    *,
    by_data: bool,
    fills_up: bool,
    noise_multiplier: float,
    rounds: int,
) -> selection.Claim | selection.NoEvent:
    """What remains of a claim where not all of a cohort report.

    Clients that fail for reasons of their own are only heard less often: the claim
    stands. Where others take their place (over-selection, first come first heard) the
    chances are no longer coins, and every round counts as if all took part. Where
    failing depends on the data, silence tells of them, and there is no claim.

    Args:
      claim: of the selector.
      by_data: whether dropping out depends on clients' data.
      fills_up: whether one client's absence lets another one in.
      noise_multiplier: as for `claim`.
      rounds: as for `claim`.
    """
    if by_data:
        return selection.NoEvent(
            "who drops out depends on clients' data, so that silence tells of them"
        )
    if isinstance(claim, selection.NoEvent) or not fills_up or not claim.amplified:
        return claim
    inner: Any = claim.event
    while hasattr(inner, "event"):
        inner = inner.event
    if not isinstance(inner, discrete_gaussian.DiscreteGaussianDpEvent):
        inner = dp_accounting.GaussianDpEvent(noise_multiplier)
    return selection.Claim(
        dp_accounting.SelfComposedDpEvent(inner, rounds),
        Relation.REPLACE_SPECIAL,
        selection.ZERO_OUT,
        1.0,
        False,
    )


def explain(found: UserPrivacy, extrapolated: Extrapolated | None = None) -> str:
    """The promise in words, a line each."""
    if found.event is None:
        lines = [f"No promise to users: {found.adjacency}."]
    else:
        sampling = (
            f"sampling helps, at the largest chance {found.rate:.4g} of a client"
            if found.amplified
            else "sampling does not help: every round counts in full"
        )
        lines = [
            f"Promise: ({found.epsilon_as_run:.4g}, {found.delta:g})-differential "
            f"privacy for each client, under {found.adjacency}.",
            f"Of this run as it is, by {found.accountant.upper()}; {sampling}.",
            f"Event: {accounting.describe(found.event)}.",
        ]
    if extrapolated is not None:
        lines.append(
            f"What if, not of this run: {extrapolated.epsilon_extrapolated:.4g} for "
            f"{extrapolated.population} clients and cohorts of "
            f"{extrapolated.cohort:g}, with noise multiplier "
            f"{extrapolated.noise_multiplier:.4g} on their sum."
        )
    return "\n".join(lines)
