"""Private questions to clients: histograms, heavy hitters, quantiles.

    counts = sum_k v_k + N,      |v_k| bounded by what one client may hand in

Every client hands in at most `limit` pieces, chosen at random where it has more: its
distinct values ('clients': a bin counts the clients that hold it), or its examples
('examples'). Integers get integer noise, drawn exactly: a discrete Gaussian, for the L2
sensitivity S_2, or a two-sided geometric one, for S_1.

| query | a client moves it by | S_1 | S_2 |
| --- | --- | --- | --- |
| counts of clients | 1 in up to `limit` bins | limit | sqrt(limit) |
| counts of examples | up to `limit` in one bin | limit | limit |
| bisection, 2 below - used | up to `limit` either way | limit | limit |

Formal guarantees: neighbours differ in one client whose pieces are replaced by nothing,
  its number of examples being public (zero-out). Gaussian:
  `DiscreteGaussianDpEvent(s / S_2)`, for RDP under REPLACE_SPECIAL. Geometric: pure
  epsilon = S_1 / s, whose worst case, whatever the mechanism, is randomized response
  between two answers: that is the event, for dp-accounting's own PLD accountant under
  REPLACE_ONE (under REPLACE_SPECIAL it takes one answer for a fair coin). Where
  nobody was asked, or holds anything, there is no answer (None), which is public too.

Bins are public, so that thresholds on noisy counts are post-processing. Noise is keyed
by root and number: the same number again would be the same noise.

Dimension key: K clients, N examples, C bins.

Example::

    noise = analytics.gaussian(2.0)
    found = analytics.histogram(words, sizes, bins=5000, limit=20, noise=noise,
                                root=rng.root(), number=0)
    found.counts, accounting.epsilon(found.event, 1e-6, found.relation, 'rdp')

References: https://arxiv.org/abs/2004.00010 (exact integer noise);
https://arxiv.org/abs/1311.0776 (randomized response is the worst of pure mechanisms);
https://arxiv.org/abs/1905.03871 (centred counts below a threshold).
"""

import math
from typing import Any, NamedTuple

import dp_accounting
import jax
import numpy as np
from jaxtyping import Int, Num
from scipy import stats

from trustml import _validate, rng
from trustml.federated import order
from trustml.privacy import discrete_gaussian

COUNTED = ("clients", "examples")

Relation = dp_accounting.NeighboringRelation
_RELATIONS = {
    "gaussian": Relation.REPLACE_SPECIAL,
    "geometric": Relation.REPLACE_ONE,
}


class Noise(NamedTuple):
    """Integer noise; made by `gaussian` or `geometric`.

    Attributes:
      name: 'gaussian' or 'geometric'.
      noise_multiplier: scale over sensitivity, rounded up to a whole scale.
    """

    name: str
    noise_multiplier: float


class Histogram(NamedTuple):
    """Noisy counts.

    Attributes:
      counts: int64[C]; may be negative.
      scale: s of the noise, a whole number.
      event: of this release.
      relation: that the event refers to.
    """

    counts: Int[np.ndarray, " C"]
    scale: int
    event: Any
    relation: Any


class HeavyHitters(NamedTuple):
    """Bins whose noisy count reaches the threshold, the largest first.

    Attributes:
      bins: int64[H].
      counts: int64[H], noisy.
      threshold: that was reached.
      event: of this release.
      relation: that the event refers to.
    """

    bins: Int[np.ndarray, " H"]
    counts: Int[np.ndarray, " H"]
    threshold: float
    event: Any
    relation: Any


class Quantile(NamedTuple):
    """A quantile by bisection.

    Attributes:
      value: middle of the last interval.
      low: its lower end.
      high: its upper end.
      scale: s of the noise of one step, on 2 below - used.
      event: of all steps together.
      relation: that the event refers to.
    """

    value: float
    low: float
    high: float
    scale: int
    event: Any
    relation: Any


def gaussian(noise_multiplier: float) -> Noise:
    """Discrete Gaussian noise of scale z S_2 or a little more."""
    cure = "1.0 is usual"
    z = _validate.positive("analytics.noise_multiplier", noise_multiplier, cure)
    return Noise("gaussian", z)


def geometric(epsilon: float) -> Noise:
    """Two-sided geometric noise, P[k] ~ exp(-|k| / s), of scale S_1 / epsilon or more.

    Args:
      epsilon: > 0, pure, of one release.
    """
    epsilon = _validate.positive("analytics.epsilon", epsilon, "1.0 is usual")
    return Noise("geometric", 1 / epsilon)


def histogram(
    values: Int[np.ndarray, " N"],
    sizes: Int[np.ndarray, " K"],
    *,
    bins: int,
    limit: int,
    noise: Noise,
    root: rng.Root,
    number: int,
    counted: str = "clients",
) -> Histogram | None:
    """How many clients, or examples, are in each bin; None where nobody is asked.

    Args:
      values: bin of each example, in [0, bins), client after client.
      sizes: n_k, public.
      bins: C, public.
      limit: pieces of one client at most.
      noise: of `gaussian` or `geometric`.
      root: of the noise; a secret one.
      number: of the release, never used twice with one root.
      counted: one of `COUNTED`.

    Raises:
      ValueError: for values that are no integers or lie outside the bins (3.0, True and
        text are no integers), or sizes that do not add up.
    """
    bins = _validate.integer_at_least("bins", bins, 1, "count the bins")
    limit = _validate.integer_at_least("limit", limit, 1, "20 is usual")
    _validate.one_of("counted", counted, COUNTED)
    values = _integers("values", values, "give the number of the bin of each example")
    owner = _owner(values, sizes)
    if not len(values):
        return None
    wrong = values[(values < 0) | (values >= bins)]
    if wrong.size:
        cure = "leave out examples of no bin"
        _validate.fail("values", int(wrong[0]), f"must be from 0 to {bins - 1}", cure)
    generator = _generator(root, number)
    if counted == "clients":
        pair = np.unique(owner * bins + values)
        owner, values = pair // bins, pair % bins
    handed = values[_chosen(root, number, owner, len(sizes), limit)]
    exact = np.bincount(handed, minlength=bins)
    most = math.sqrt(limit) if counted == "clients" else limit
    scale, event = _scaled(noise, {"gaussian": most, "geometric": limit}[noise.name])
    noisy = exact + _drawn(noise, generator, scale, bins)
    return Histogram(noisy, scale, event, _RELATIONS[noise.name])


def heavy_hitters(
    values: Int[np.ndarray, " N"],
    sizes: Int[np.ndarray, " K"],
    *,
    bins: int,
    limit: int,
    noise: Noise,
    root: rng.Root,
    number: int,
    threshold: float | None = None,
    false_rate: float = 0.05,
) -> HeavyHitters | None:
    """Bins that many clients hold; None where nobody is asked.

    Args:
      values: see `histogram`.
      sizes: see `histogram`.
      bins: see `histogram`.
      limit: see `histogram`.
      noise: see `histogram`.
      root: see `histogram`.
      number: see `histogram`.
      threshold: noisy count that a bin needs; None: the least one that any bin which
        nobody holds reaches with a chance of at most `false_rate`.
      false_rate: in (0, 1).

    Raises:
      ValueError: see `histogram`.
    """
    found = histogram(
        values, sizes, bins=bins, limit=limit, noise=noise, root=root, number=number
    )
    if found is None:
        return None
    rate = _validate.in_open_interval("false_rate", false_rate, 0, 1, "try 0.05")
    if threshold is None:
        threshold = _quiet(noise, found.scale, rate / bins)
    ranked = np.argsort(-found.counts, kind="stable")
    kept = ranked[found.counts[ranked] >= threshold]
    return HeavyHitters(
        kept, found.counts[kept], threshold, found.event, found.relation
    )


def quantile(
    values: Num[np.ndarray, " N"],
    sizes: Int[np.ndarray, " K"],
    share: float,
    *,
    low: float,
    high: float,
    noise: Noise,
    root: rng.Root,
    number: int,
    limit: int = 1,
    steps: int = 16,
) -> Quantile | None:
    """A quantile over the examples that clients hand in; None where nobody is asked.

    Each step asks how many are below the middle of an interval, and keeps the half that
    the noisy answer points to: steps are releases, and cost as many.

    Args:
      values: client after client; infinities count as at the ends.
      sizes: n_k, public.
      share: of the examples that are to lie below, in (0, 1).
      low: where bisection begins; what is beyond counts as at the end.
      high: where it begins, above.
      noise: of one step.
      root: see `histogram`.
      number: see `histogram`; one for all steps.
      limit: examples of one client at most.
      steps: halvings, each a release.

    Raises:
      ValueError: for values that are no numbers, NaN among them, or sizes that do not
        add up.
    """
    share = _validate.in_open_interval("share", share, 0, 1, "0.5 is the median")
    limit = _validate.integer_at_least("limit", limit, 1, "1 counts clients alike")
    steps = _validate.integer_at_least("steps", steps, 1, "16 is usual")
    low, high = _validate.finite("low", low), _validate.finite("high", high)
    if not low < high:
        _validate.fail("high", high, f"must exceed low={low}", "swap them")
    values = _validate.numbers_of("values", values)
    if values.ndim != 1:
        cure = "give one number for each example"
        _validate.fail(
            "values", list(values.shape), "must be numbers on one axis", cure
        )
    owner = _owner(values, sizes)
    if not len(values):
        return None
    lost = np.flatnonzero(np.isnan(values))
    if lost.size:
        bound = f"has no place in an order ({lost.size} of {len(values)} have none)"
        cure = "leave out examples without a value"
        _validate.fail(f"values[{lost[0]}]", math.nan, bound, cure)
    generator = _generator(root, number)
    handed = values[_chosen(root, number, owner, len(sizes), limit)]
    scale, event = _scaled(noise, limit)
    for drawn in _drawn(noise, generator, scale, steps):
        middle = (low + high) / 2
        centred = 2 * np.count_nonzero(handed < middle) - len(handed) + int(drawn)
        below = (centred + len(handed)) / 2
        low, high = (middle, high) if below < share * len(handed) else (low, middle)
    whole = dp_accounting.SelfComposedDpEvent(event, steps)
    return Quantile((low + high) / 2, low, high, scale, whole, _RELATIONS[noise.name])


def _integers(field: str, given, cure: str) -> np.ndarray:
    """One axis of integers, int64; nothing at all is of any type."""
    found = np.asarray(given)
    if found.ndim != 1 or found.size and found.dtype.kind not in "iu":
        what = f"{found.dtype.type.__name__}{list(found.shape)}"
        _validate.fail(field, what, "must be integers on one axis", cure)
    return found.astype(np.int64)


def _owner(values: np.ndarray, sizes) -> np.ndarray:
    """Whose each of the values is."""
    sizes = _integers("sizes", sizes, "count the examples of each client")
    if sizes.sum() != len(values) or (sizes < 0).any():
        bound = f"must add up to the {len(values)} values"
        _validate.fail("sizes", int(sizes.sum()), bound, "give one for each client")
    return np.repeat(np.arange(len(sizes)), sizes)


def _chosen(root, number: int, owner, clients: int, limit: int) -> np.ndarray:
    """Rows of at most `limit` pieces of each client, in a keyed order of its own.

    What one client holds changes nothing in what others hand in.
    """
    held = np.bincount(owner, minlength=clients)
    used = np.minimum(held, limit)
    key = rng.step_key(rng.stream(root, "choice"), number)
    local = order.positions(
        np.asarray(jax.random.key_data(key)),
        number,
        np.arange(clients),
        held,
        0,
        limit=limit,
    )
    return np.repeat(np.cumsum(held) - held, used) + local


def _generator(root: rng.Root, number: int) -> np.random.Generator:
    number = _validate.integer_at_least("number", number, 0, "count the releases")
    key = rng.seed_128(rng.stream(root, "analytics"))
    counter = np.array([0, 0, number, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _scaled(noise: Noise, sensitivity: float) -> tuple[int, dp_accounting.DpEvent]:
    """A whole scale, at least what was asked for, and its event."""
    scale = math.ceil(noise.noise_multiplier * sensitivity * (1 - 1e-12))
    if noise.name == "gaussian":
        event = discrete_gaussian.DiscreteGaussianDpEvent(scale / sensitivity)
        return scale, event
    flip = 2 / (1 + math.exp(sensitivity / scale))
    return scale, dp_accounting.RandomizedResponseDpEvent(flip, 2)


def _drawn(noise: Noise, generator, scale: int, count: int) -> np.ndarray:
    if noise.name == "gaussian":
        return discrete_gaussian.sample(generator, scale, count)
    return discrete_gaussian.sample_laplace(generator, scale, count)


def _quiet(noise: Noise, scale: int, chance: float) -> float:
    """A whole number that noise alone reaches with this chance at most."""
    if noise.name == "gaussian":
        # The weights exp(-k^2 / 2 s^2) add up to s sqrt(2 pi) or more, and fall: the
        # tail from t on is below that of a normal from t - 1 on.
        return float(math.ceil(stats.norm.isf(chance) * scale) + 1)
    # P[k >= t] = r^t / (1 + r), r = exp(-1 / s).
    r = math.exp(-1 / scale)
    return float(max(1, math.ceil(-scale * math.log(chance * (1 + r)))))
