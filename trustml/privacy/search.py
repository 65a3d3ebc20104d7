"""Hyper-parameters chosen privately: a random number of trials, of which one is kept.

    K ~ a law of mean mu;  K times: draw a candidate, train it by the plan, score it;
    release the best alone

Choosing by results leaks: with a fixed K the price is up to that of releasing all K
models. If K is random and stays hidden it is far less (Papernot and Steinke 2021): with
(lambda, e(lambda))-RDP of one trial, for K of a truncated negative binomial with shape
eta and parameter gamma

    e'(lambda) = e(lambda) + log(mu) / (lambda - 1)
                 + (1 + eta) min_l [ (1 - 1/l) e(l) - log(gamma) / l ]

At q = 0.05, z = 2, 200 steps and delta = 1e-5 one trial has epsilon 1.56 (by RDP 1.72)
and the best of ten on average 2.93, 3.46 or 3.77 with a logarithmic, geometric or
Poisson law.

| law of K | shape eta | P(K = k) |
| --- | --- | --- |
| `logarithmic` | 0 | ~ (1 - gamma)^k / k, k >= 1 |
| `geometric` | 1 | gamma (1 - gamma)^(k-1), k >= 1 |
| `truncated_negative_binomial` | eta > 0 | between and beyond, k >= 1 |
| `poisson` | infinite | mu^k e^-mu / k!, also k = 0: then nothing is released |

The smaller the shape, the wider the law and the smaller the last term.

The score is part of a trial. What it costs depends on the records it is computed on:

| score on | epsilon of the search |
| --- | --- |
| `public` records | that of repeating the plan |
| `validation`: private, never trained on | the larger of repeating plan or score |
| `training` records | that of repeating both together |

A record is either trained on or validated on, by a rule that looks at this record and
no other, so the costs of the two do not add up. A private score without noise has no
bound at all.

Covered: what `run` returns, the candidate and its score included. Not covered: K, other
trials and the time they took; publish none of them.

Example::

    trials = search.trials('logarithmic', mean=10)
    made = search.make(plan, trials, score='validation', score_stddev=10.0)
    print(made.explain())                     # before anything is trained
    best = search.run(made, [1e-3, 3e-3], train_and_count_right, rng.root())

References: https://arxiv.org/abs/2110.03620
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import dp_accounting
import numpy as np
from dp_accounting import dp_event, rdp
from scipy import optimize

from trustml import _validate, rng
from trustml.privacy import accounting
from trustml.privacy import plan as plan_lib

LAWS = ("logarithmic", "geometric", "truncated_negative_binomial", "poisson")
SCORES = ("public", "validation", "training")
_SHAPES = {"logarithmic": 0.0, "geometric": 1.0, "poisson": math.inf}


class Trials(NamedTuple):
    """The law of the number of trials.

    Attributes:
      law: one of `LAWS`.
      mean: mu > 1.
      shape: eta; infinite for 'poisson'.
      draw: numpy Generator -> K; 0 only under 'poisson'.
    """

    law: str
    mean: float
    shape: float
    draw: Callable[[np.random.Generator], int]


class Search(NamedTuple):
    """A private search; made by `make`.

    Attributes:
      trials: law of the number of trials.
      events: kind of record -> the event that such a record is part of.
      epsilon: (delta=None) -> of the whole search, the larger over kinds of records.
      delta: the plan's.
      score_stddev: of the noise on a trial's score; 0 where that is public.
      explain: () -> what is promised and what it costs, in plain words.
    """

    trials: Trials
    events: dict[str, accounting.Event]
    epsilon: Callable[..., float]
    delta: float
    score_stddev: float
    explain: Callable[[], str]


class Best(NamedTuple):
    """What a search releases."""

    candidate: Any
    result: Any
    score: float  # with its noise


def trials(law: str, mean: float, shape: float | None = None) -> Trials:
    """The law of the number of trials.

    Args:
      law: one of `LAWS`.
      mean: mu, expected number of trials, > 1 and at most 1000.
      shape: eta > 0 of 'truncated_negative_binomial', at most 100; None for the others.

    Raises:
      ValueError: for another law (a fixed number has no such bound) or a bad number.
    """
    cure = "a fixed number of trials costs what releasing all of them does"
    _validate.one_of("trials.law", law, LAWS, cure)
    mean = _validate.finite("trials.mean", mean, "10 is usual")
    if not 1 < mean <= 1000:
        bound = "must be above 1 and at most 1000"
        _validate.fail("trials.mean", mean, bound, "a single trial needs no search")
    if law in _SHAPES:
        if shape is not None:
            bound = f"has no effect on law={law!r}, which has shape {_SHAPES[law]:g}"
            cure = "leave it out or use 'truncated_negative_binomial'"
            _validate.fail("trials.shape", shape, bound, cure)
        shape = _SHAPES[law]
    else:
        cure = "0.5 lies between logarithmic and geometric"
        shape = _validate.positive("trials.shape", shape, cure)
        _validate.in_half_open_interval("trials.shape", shape, 1e-6, 100.1, cure)
    first, probabilities = _probabilities(mean, shape)
    upper = np.cumsum(probabilities)

    def draw(generator: np.random.Generator) -> int:
        return first + int(np.searchsorted(upper, generator.random(), side="right"))

    return Trials(law, mean, shape, draw)


def event(trial: accounting.Event, law: Trials) -> accounting.Event:
    """The event of the best of K runs of `trial`."""
    return dp_event.RepeatAndSelectDpEvent(trial, law.mean, law.shape)


def epsilon(
    trial: accounting.Event, law: Trials, delta: float, relation: accounting.Relation
) -> float:
    """Epsilon of the best of K runs of `trial`, by RDP: no other accountant covers it.

    Args:
      trial: event of one run: (sampled) Gaussian releases, see `accounting`.
      law: of K.
      delta: in (0, 1).
      relation: that the event's multipliers refer to.

    Raises:
      ValueError: if RDP does not cover the event under this relation.
    """
    delta = accounting.check_delta(delta)
    relation = accounting.relation(relation)
    reason = accounting.unsupported(trial, relation, "rdp")
    if reason is not None:
        cure = "take a plan that the RDP accountant covers"
        _validate.fail(
            "trial", accounting.describe(trial), f"has no RDP bound: {reason}", cure
        )
    accountant = rdp.RdpAccountant(neighboring_relation=relation)
    with accounting.quiet():
        return float(accountant.compose(event(trial, law)).get_epsilon(delta))


def make(
    plan: plan_lib.Plan,
    law: Trials,
    *,
    score: str,
    score_stddev: float | None = None,
) -> Search:
    """What it costs to train by `plan` repeatedly and to keep the best by its score.

    Formal guarantee: what `run` returns is (epsilon(), delta)-DP under the plan's
      relation, if every candidate is trained by this plan, with noise of its own.

    Args:
      plan: of one trial; the same for all candidates.
      law: of the number of trials, see `trials`.
      score: which records the score is computed on, one of `SCORES`; no default.
      score_stddev: of the Gaussian noise on a score of private records, > 0. The score
        is a sum of numbers in [0, 1], one a record, such as the number of right
        answers: one record moves it by at most 1.

    Raises:
      ValueError: for a bad number, or a plan that the RDP accountant does not cover.
    """
    _validate.one_of("score", score, SCORES)
    if score == "public":
        if score_stddev is not None:
            bound = "has no effect on a score of public records"
            _validate.fail("score_stddev", score_stddev, bound, "leave it out")
        stddev = 0.0
    else:
        cure = f"a score of {score} records without noise has no bound"
        stddev = _validate.positive("score_stddev", score_stddev, cure)
    training = plan.event()
    kinds = {"training": training}
    if stddev:
        count = dp_accounting.GaussianDpEvent(stddev)
        both = dp_accounting.ComposedDpEvent([training, count])
        kinds[score] = count if score == "validation" else both
    memory: dict[tuple[str, float], float] = {}

    def of_kind(kind: str, delta: float) -> float:
        if (kind, delta) not in memory:
            found = epsilon(kinds[kind], law, delta, plan.relation)
            memory[kind, delta] = found
        return memory[kind, delta]

    def whole(delta: float | None = None) -> float:
        at = plan.delta if delta is None else accounting.check_delta(delta)
        return max(of_kind(kind, at) for kind in kinds)

    def explain() -> str:
        name = law.law.replace("_", " ")
        one = accounting.epsilon(training, plan.delta, plan.relation, "rdp")
        lines = [
            f"Promise: ({whole():.4g}, {plan.delta:g})-differential privacy under "
            f"{plan.relation.name} for the best of K trials; K is {name} with mean "
            f"{law.mean:g}, drawn at random, and stays secret.",
            f"One trial alone: epsilon {plan.epsilon():.4g} by {plan.accountant}, "
            f"{one:.4g} by RDP, in which the search is accounted.",
        ]
        if score == "public":
            lines.append("The score is computed on public records and costs nothing.")
        else:
            lines.append(
                f"The score is computed on {score} records, with noise of standard "
                f"deviation {stddev:g} on a sum that one record moves by at most 1."
            )
        if score == "validation":
            lines += [
                f"A record trained on: epsilon {of_kind('training', plan.delta):.4g}; "
                f"a record validated on: {of_kind('validation', plan.delta):.4g}. A "
                "record is one or the other, so the larger holds."
            ]
        if score == "training":
            without = epsilon(training, law, plan.delta, plan.relation)
            lines.append(
                f"On public records in its place the search would cost {without:.4g}."
            )
        return "\n".join(lines)

    events = {kind: event(trial, law) for kind, trial in kinds.items()}
    return Search(law, events, whole, plan.delta, stddev, explain)


def run(
    made: Search,
    candidates: Sequence[Any],
    trial: Callable[[Any, int], tuple[Any, float]],
    root: rng.Root,
) -> Best | None:
    """Trains a random number of random candidates; returns the best by noisy score.

    Args:
      made: see `make`.
      candidates: hyper-parameters, chosen without the private records; each trial draws
        one of them, all equally likely.
      trial: (candidate, number) -> (result, score without noise). It trains by the plan
        that `made` is made from, and `number` (0, 1, ...) must give its noise a root or
        stream of its own.
      root: of the draws; secret where privacy is claimed.

    Returns:
      The best trial, or None where K = 0 ('poisson').

    Raises:
      ValueError: if there is no candidate or a score is not finite.
    """
    if not len(candidates):
        cure = "name what to choose from"
        _validate.fail("candidates", list(candidates), "must not be empty", cure)
    seed = rng.seed_128(rng.stream(root, "search"))
    generator = np.random.Generator(np.random.Philox(key=seed))
    best = None
    for number in range(made.trials.draw(generator)):
        candidate = candidates[int(generator.integers(len(candidates)))]
        noise = made.score_stddev * generator.standard_normal()
        result, score = trial(candidate, number)
        score = _validate.finite("score", float(score), "count right answers") + noise
        if best is None or score > best.score:
            best = Best(candidate, result, score)
    return best


def _probabilities(mean: float, shape: float) -> tuple[int, np.ndarray]:
    """The smallest K and the probabilities of it and what follows; the rest < 1e-15."""
    if shape == math.inf:
        k = np.arange(math.ceil(mean + 40 * math.sqrt(mean)) + 60)
        logs = np.log(mean / (k[1:]))
        first = 0
    else:
        gamma = _gamma(mean, shape)
        k = np.arange(1, math.ceil(40 / gamma) + math.ceil(20 * mean))
        logs = math.log1p(-gamma) + np.log((k[:-1] + shape) / (k[:-1] + 1))
        first = 1
    weights = np.concatenate([[0.0], np.cumsum(logs)])
    weights = np.exp(weights - np.max(weights))
    return first, weights / np.sum(weights)


def _gamma(mean: float, shape: float) -> float:
    """The parameter of the truncated negative binomial with this mean."""

    def excess(t: float) -> float:  # gamma = exp(-t)
        if shape == 0:
            return math.expm1(t) / t - mean
        return shape * math.expm1(t) / -math.expm1(-shape * t) - mean

    return math.exp(-optimize.brentq(excess, 1e-9, 40.0, xtol=1e-13))
