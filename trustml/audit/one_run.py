"""Lower bounds on epsilon from one training run and the coins of its canaries.

Every one of m canaries was in the data by a fair coin of its own. The auditor calls the
k_in highest scores in and the k_out lowest out, and abstains on the others; of r =
k_in + k_out guesses v are right. How canaries influence one another does not matter.

| function | bounds | needs besides |
|---|---|---|
| `epsilon_delta` | any mechanism (Steinke et al. 2023) | nothing |
| `gaussian` | mu, and through it epsilon (Mahloujifar et al. 2024) | Gaussian DP |

If the mechanism is (epsilon, delta)-DP, and W ~ Bin(r, e^epsilon/(1 + e^epsilon)),

    P[right >= v] <= p(epsilon) = P[W >= v] + 2 m delta max_i P[v > W >= v - i] / i

and the bound is the first epsilon at which p reaches alpha. With delta = 0 and all
right it is -log(alpha^(-1/r) - 1), which r guesses never exceed.

The numbers of guesses are part of the audit's design. As with thresholds, the best of
several is no bound, so the `strategy` is one of

| strategy | `guesses` | level |
|---|---|---|
| `fixed` | one pair (k_in, k_out), chosen before the coins were seen | alpha |
| `split` | a grid of pairs; the best on a random half is used on the other | alpha |
| `bonferroni` | a grid of pairs, declared beforehand; the best counts | alpha / pairs |

Example::

    bound = one_run.epsilon_delta(scores, coins, guesses=(50, 50), delta=1e-5)
    bound = one_run.gaussian(
        scores, coins, guesses=[(25, 25), (50, 50), (100, 100)],
        strategy='bonferroni', delta=1e-5,
    )

References: Steinke, Nasr, Jagielski 2023, https://arxiv.org/abs/2305.08846, Theorem 5.2
and Appendix D; Mahloujifar, Melis, Chaudhuri 2024, https://arxiv.org/abs/2410.22235,
Algorithm 3.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy import typing as npt
from scipy import special, stats

from trustml import _validate
from trustml.attacks import metrics
from trustml.audit import rates
from trustml.audit.result import AuditResult, saturation
from trustml.privacy import accounting

STRATEGIES = ("fixed", "split", "bonferroni")
COINS_LEVEL = 1e-3
_TIES, _HALVES = 0x7E5, 0x4A1  # of the streams that order equal scores, and split

Pair = tuple[int, int]

_COINS = "every canary was in by a fair coin of its own"
_GAUSSIAN = "the mechanism's trade-off curve is that of mu-Gaussian DP"


def epsilon_delta(
    scores: npt.ArrayLike,
    coins: npt.ArrayLike | None,
    *,
    guesses: Pair | Sequence[Pair],
    delta: float,
    alpha: float = 0.01,
    strategy: str = "fixed",
    seed: int = 0,
) -> AuditResult:
    """Epsilon of any mechanism, from the right guesses of one run.

    Assumes: the coins; and that guesses were made from what the run released.

    Args:
      scores: float[m], of all canaries; larger means in.
      coins: bool[m], which canaries were in.
      guesses: (k_in, k_out), or pairs of them; see the module docstring.
      delta: in [0, 1).
      alpha: in (0, 1); the bound fails with at most this probability.
      strategy: 'fixed', 'split' or 'bonferroni'.
      seed: of the halves of 'split', and of the order of tied scores.

    Raises:
      ValueError: without coins, if they are so uneven that fair ones would be with
        probability 1e-3, on nan scores, and for guesses that do not fit the strategy.
    References: https://arxiv.org/abs/2305.08846
    """
    delta = _validate.in_half_open_interval("delta", delta, 0, 1, "1e-5 is usual")
    return _bound(
        scores, coins, guesses, strategy, seed, delta, alpha,
        "one_run_epsilon_delta", _COINS, epsilon_of_counts,
    )  # fmt: skip


def gaussian(
    scores: npt.ArrayLike,
    coins: npt.ArrayLike | None,
    *,
    guesses: Pair | Sequence[Pair],
    delta: float,
    alpha: float = 0.01,
    strategy: str = "fixed",
    seed: int = 0,
) -> AuditResult:
    """Epsilon of a mechanism that is mu-Gaussian DP, from the guesses of one run.

    Assumes: the coins; and that the mechanism's trade-off curve is that of a Gaussian
      (T full Gaussian releases, not sampled ones).

    Args:
      scores: as `epsilon_delta`, and all others too.
      coins: see there.
      guesses: see there.
      delta: in (0, 1).
      alpha: see there.
      strategy: see there.
      seed: see there.

    Raises:
      ValueError: as `epsilon_delta`.
    References: https://arxiv.org/abs/2410.22235
    """
    delta = accounting.check_delta(delta, "delta")

    def epsilon(correct, guesses, canaries, *, delta, alpha):
        mu = mu_of_counts(correct, guesses, canaries, alpha=alpha)
        return rates.gaussian_epsilon(mu, delta)

    return _bound(
        scores, coins, guesses, strategy, seed, delta, alpha,
        "one_run_gaussian", f"{_COINS}; {_GAUSSIAN}", epsilon,
    )  # fmt: skip


def guess(
    scores: npt.ArrayLike, coins: npt.ArrayLike, guesses: Pair, *, seed: int = 0
) -> int:
    """How many guesses are right: the highest scores called in, the lowest out.

    Args:
      scores: float[m]; larger means in.
      coins: bool[m], which canaries were in.
      guesses: (k_in, k_out), together at most m.
      seed: of the order of tied scores, which must not be that of the canaries.
    """
    scores = _validate.numbers_of("scores", scores)
    coins = np.asarray(coins, bool)
    k_in, k_out = _pair(guesses, scores.size)
    # A stream of its own: coins of the same bare seed must not decide ties.
    shuffled = np.random.default_rng((seed, _TIES)).permutation(scores.size)
    order = shuffled[np.argsort(scores[shuffled], kind="stable")]
    highest, lowest = order[scores.size - k_in :], order[:k_out]
    return int(np.sum(coins[highest]) + np.sum(~coins[lowest]))


@functools.lru_cache(maxsize=4096)
def epsilon_of_counts(
    correct: int, guesses: int, canaries: int, *, delta: float, alpha: float
) -> float:
    """Epsilon of any mechanism; see `epsilon_delta`.

    Args:
      correct: v, right guesses.
      guesses: r, fixed beforehand; canaries guessed at.
      canaries: m, all of them.
      delta: in [0, 1).
      alpha: in (0, 1).

    Raises:
      ValueError: unless 0 <= correct <= guesses <= canaries.
    """
    _counts(correct, guesses, canaries)
    alpha = _validate.in_open_interval("alpha", alpha, 0, 1, "0.01 is usual")
    delta = _validate.in_half_open_interval("delta", delta, 0, 1, "1e-5 is usual")

    def rejected(epsilon: float) -> bool:
        return _p_value(correct, guesses, canaries, epsilon, delta) < alpha

    if not rejected(0.0):
        return 0.0
    # p is the largest mean, over i, of g_i(W) with g_i = 2 m delta / i just below v and
    # 1 from v on. Where no g_i falls, p rises with epsilon and steps may be large; else
    # steps are small against the spread of W, whose logit moves by 1 / sqrt(r).
    step = 0.25 if 2 * canaries * delta <= 1 else 0.25 / math.sqrt(guesses)
    low, high = 0.0, step
    while rejected(high):  # ends: at large epsilon W is r, and alpha < 1
        low, high = high, high + step
    return _bisected(rejected, low, high)


@functools.lru_cache(maxsize=4096)
def mu_of_counts(correct: int, guesses: int, canaries: int, *, alpha: float) -> float:
    """Mu of a mechanism that is mu-Gaussian DP; see `gaussian`.

    With v right guesses of r, and B(x) = Phi(Phi^-1(x) - mu), the inverse of the
    blow-up of the trade-off curve: x = alpha v/m, y = alpha (r-v)/m, and for i = v-1
    down to 0

        y' = max(y, B(x)),   x <- x + (y' - y) i/(r-i),   y <- y'

    mu is rejected where x + y ends above r/m.

    Args:
      correct: v, right guesses.
      guesses: r, fixed beforehand; canaries guessed at.
      canaries: m, all of them.
      alpha: in (0, 1).

    Returns:
      The largest mu that is rejected; 0 where none is.

    Raises:
      ValueError: unless 0 <= correct <= guesses <= canaries.
    """
    _counts(correct, guesses, canaries)
    alpha = _validate.in_open_interval("alpha", alpha, 0, 1, "0.01 is usual")

    def rejected(mu: float) -> bool:
        right = alpha * correct / canaries
        wrong = alpha * (guesses - correct) / canaries
        for i in range(correct - 1, -1, -1):
            grown = max(wrong, float(special.ndtr(special.ndtri(right) - mu)))
            right = min(1.0, right + i / (guesses - i) * (grown - wrong))
            wrong = grown
            if right + wrong > guesses / canaries:
                return True
        return False

    if not rejected(0.0):
        return 0.0
    high = 0.25
    while rejected(high):  # ends: as mu grows nothing is added any more, and alpha < 1
        high *= 2
    return _bisected(rejected, 0.0, high)


def _p_value(v: int, r: int, m: int, epsilon: float, delta: float) -> float:
    """Bound on the probability of v or more right guesses under (epsilon, delta)."""
    rate = float(special.expit(epsilon))
    tail = float(stats.binom.sf(v - 1, r, rate))
    if delta == 0 or v == 0:
        return min(1.0, tail)
    below = np.cumsum(stats.binom.pmf(np.arange(v - 1, -1, -1), r, rate))
    steepest = float(np.max(below / np.arange(1, v + 1)))
    return min(1.0, tail + 2 * m * delta * steepest)


def _bisected(rejected: Callable[[float], bool], low: float, high: float) -> float:
    """The largest value that is rejected, between one that is and one that is not."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def _bound(
    scores: npt.ArrayLike,
    coins: npt.ArrayLike | None,
    guesses: Any,
    strategy: str,
    seed: int,
    delta: float,
    alpha: float,
    method: str,
    assumption: str,
    epsilon_of: Callable[..., float],
) -> AuditResult:
    alpha = _validate.in_open_interval("alpha", alpha, 0, 1, "0.01 is usual")
    scores, coins = check_coins(scores, coins)
    pairs = _pairs(guesses, strategy)
    level = alpha / len(pairs) if strategy == "bonferroni" else alpha
    if strategy == "split":
        shuffled = np.random.default_rng((seed, _HALVES)).permutation(scores.size)
        first, second = np.array_split(shuffled, 2)
        chosen = _best(
            scores[first], coins[first], pairs, seed, delta, level, epsilon_of
        )
        pairs, scores, coins = [chosen[1]], scores[second], coins[second]
    epsilon, pair = _best(scores, coins, pairs, seed, delta, level, epsilon_of)
    r = sum(pair)
    ceiling = epsilon_of(r, r, scores.size, delta=delta, alpha=level)
    n_in = int(np.sum(coins))
    return AuditResult(
        epsilon=epsilon,
        delta=delta,
        confidence=1 - alpha,
        kind="confidence",
        method=method,
        strategy=f"{strategy}, {pair[0]} guessed in and {pair[1]} out",
        assumption=assumption,
        n_in=n_in,
        n_out=scores.size - n_in,
        threshold=math.nan,
        epsilon_ceiling=ceiling,
        warnings=saturation(epsilon, ceiling),
    )


def _best(scores, coins, pairs, seed, delta, level, epsilon_of) -> tuple[float, Pair]:
    """The pair of the largest bound; ties go to the first."""
    found = [
        epsilon_of(
            guess(scores, coins, pair, seed=seed),
            sum(pair),
            scores.size,
            delta=delta,
            alpha=level,
        )
        for pair in pairs
    ]
    at = int(np.argmax(found))
    return found[at], pairs[at]


def check_coins(
    scores: npt.ArrayLike, coins: npt.ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and coins as arrays, if the coins may have been fair ones.

    Args:
      scores: float[m].
      coins: bool[m].

    Raises:
      ValueError: without coins, on nan scores, on shapes that differ, and where fair
        coins would be as uneven with probability below 1e-3 (two-sided binomial).
    """
    if coins is None:
        _validate.fail(
            "coins",
            None,
            "is missing: fair coins, and known ones, are all that the bound rests on",
            "draw them with canaries.coins before training, and keep them",
        )
    scores, _ = metrics.check_scores(scores, [0.0])
    flips = np.asarray(coins)
    if flips.dtype != bool or flips.shape != scores.shape:
        _validate.fail(
            "coins",
            f"{flips.dtype}{list(flips.shape)}",
            f"must be bool[{scores.size}], one for each score",
        )
    heads = int(np.sum(flips))
    p = float(stats.binomtest(heads, flips.size, 0.5).pvalue)
    if p < COINS_LEVEL:
        _validate.fail(
            "coins",
            f"{heads} of {flips.size} in",
            f"are no fair coins (p = {p:.1g})",
            "give the coin of every canary, of those that were out too",
        )
    if heads in (0, flips.size):
        side = "in" if heads else "out"
        _validate.fail(
            "coins",
            f"all {side}",
            "leaves nothing to tell apart",
            "flip a fair coin for each canary, and audit those that came up tails too",
        )
    return scores, flips


def _pairs(guesses: Any, strategy: str) -> list[Pair]:
    """The pairs of a design; refuses a best of several at the level of one."""
    _validate.one_of("strategy", strategy, STRATEGIES)
    single = np.ndim(guesses) == 1
    if single != (strategy == "fixed"):
        cure = (
            "give one pair (k_in, k_out) with 'fixed', a grid of pairs with 'split' or "
            "'bonferroni': the best of several at the level of one is no bound"
        )
        bound = f"does not go with strategy={strategy!r}"
        _validate.fail("guesses", guesses, bound, cure)
    pairs = [guesses] if single else list(guesses)
    if not pairs:
        _validate.fail("guesses", guesses, "is an empty grid")
    return [tuple(pair) for pair in pairs]


def _pair(guesses: Any, canaries: int) -> Pair:
    if len(guesses) != 2:
        _validate.fail("guesses", guesses, "must be a pair (k_in, k_out)")
    k_in, k_out = (
        _validate.integer_at_least("guesses", k, 0, "0.05 m a side are usual")
        for k in guesses
    )
    if not 1 <= k_in + k_out <= canaries:
        bound = f"must be at least 1 and at most the {canaries} canaries together"
        _validate.fail("guesses", guesses, bound)
    return k_in, k_out


def _counts(correct: int, guesses: int, canaries: int) -> None:
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(
            f"correct={correct}, guesses={guesses}, canaries={canaries} are not in "
            "order; 0 <= correct <= guesses <= canaries is needed."
        )
