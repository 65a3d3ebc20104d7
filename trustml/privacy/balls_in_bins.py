"""Privacy of balls-in-bins batches, by Monte Carlo: confidence limits, never a mean.

In every epoch each example falls into one of K batches, uniformly and on its own. An
epoch is dominated by the pair (Chua et al. 2024), x in R^K,

    P = 1/K sum_j N(e_j, z^2 I),    Q = N(0, z^2 I),
    L(x) = log P(x)/Q(x) = log( 1/K sum_j exp((2 x_j - 1) / (2 z^2)) ),

losses of epochs add up, since each throws anew, and

    delta(epsilon) = max( E_P[(1 - e^(epsilon - L))_+], E_Q[(1 - e^(epsilon + L))_+] ).

Both means have no closed form for K > 1. They are those of numbers in [0, 1], so the
mean m of n of them is exceeded by the true one, u, with a chance of at most
exp(-n kl(m, u)) (Hoeffding 1963); `Losses.upper` solves that for u, each direction with
half of 1 - level. The limit falls as epsilon grows, so the epsilon found from it is
itself an upper limit at that level. So is a z searched for a given epsilon, since all z
share one set of draws and the limit falls as z grows; that it does so is a matter of
observation, draw by draw it need not. The chance is over the draws made here, from a
fixed public seed, and has nothing to do with the data.

The price: 2 n K E normal numbers for E epochs, about 20 ns each; n = 40 / delta.

Dimension key: K bins (batches of an epoch), E epochs, n draws.

Example::

    losses = balls_in_bins.simulate(bins=10, noise_multiplier=1.0, epochs=2)
    losses.upper(epsilon=3.0)             # delta is at most this, at level 0.99
    losses.epsilon(delta=1e-4)

References: https://arxiv.org/abs/2412.16802
"""

import dataclasses
import functools
import math

import dp_accounting
import numpy as np
from scipy import optimize

from trustml import _validate

LEVEL = 0.99
# What float32 sums may be off in one epoch's loss, times max(1, 1/z^2); losses are
# moved by it, upwards.
_SLACK = 2e-5
_CHUNK = 1 << 21  # numbers drawn at a time
_MOST_NUMBERS = 2e11
_SEED = 0x62616C6C73


@dataclasses.dataclass(frozen=True)
class BallsInBinsDpEvent(dp_accounting.DpEvent):
    """One epoch: every record in one of `bins` batches, `event` releases each.

    Attributes:
      bins: K >= 1.
      event: the Gaussian release of a batch.
    """

    bins: int
    event: dp_accounting.GaussianDpEvent


@dataclasses.dataclass(frozen=True)
class Losses:
    """Draws of the privacy loss, both ways round.

    Attributes:
      draws: n.
      from_p: those of L > 0 under P, descending.
      from_q: those of -L > 0 under Q, descending.
    """

    draws: int
    from_p: np.ndarray
    from_q: np.ndarray

    @functools.cached_property
    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums of exp(-loss) over the first 0, 1, 2 ... draws of each."""
        p, q = (np.cumsum(np.exp(-x)) for x in (self.from_p, self.from_q))
        return np.concatenate([[0.0], p]), np.concatenate([[0.0], q])

    def means(self, epsilon: float) -> tuple[float, float]:
        """The two sample means; estimates, NOT bounds."""
        found = []
        for losses, sums in zip((self.from_p, self.from_q), self._sums, strict=True):
            count = int(np.searchsorted(-losses, -epsilon))
            total = count - math.exp(epsilon) * sums[count] if count else 0.0
            found.append(max(float(total), 0.0) / self.draws)
        return found[0], found[1]

    def upper(self, epsilon: float, level: float = LEVEL) -> float:
        """Delta at `epsilon` is at most this, with confidence `level`."""
        risk = _risk(level) / 2
        return max(_upper(mean, self.draws, risk) for mean in self.means(epsilon))

    def lower(self, epsilon: float, level: float = LEVEL) -> float:
        """Delta at `epsilon` is at least this, with confidence `level`."""
        risk = _risk(level) / 2
        return max(_lower(mean, self.draws, risk) for mean in self.means(epsilon))

    def epsilon(self, delta: float, level: float = LEVEL) -> float:
        """With confidence `level` the event is (this, delta)-DP; inf if n is small."""
        if self.upper(0.0, level) <= delta:
            return 0.0
        largest = [x[0] for x in (self.from_p, self.from_q) if len(x)]
        low, high = 0.0, float(max(largest, default=0.0)) + 1.0
        if self.upper(high, level) > delta:
            return math.inf
        while high - low > 1e-7 * max(high, 1e-3):
            middle = (low + high) / 2
            if self.upper(middle, level) <= delta:
                high = middle
            else:
                low = middle
        return high


def draws_for(delta: float) -> int:
    """How many draws tell a delta of this size from others near by."""
    return max(1 << 17, math.ceil(40 / delta))


@functools.lru_cache(maxsize=2)
def simulate(
    bins: int, noise_multiplier: float, epochs: int, draws: int = 1 << 20, seed: int = 0
) -> Losses:
    """Losses of `epochs` epochs of K = `bins` batches each.

    Args:
      bins: K >= 1.
      noise_multiplier: z > 0, stddev of the noise over the sensitivity.
      epochs: E >= 1.
      draws: n, of each direction.
      seed: another integer gives other draws; the same z never does.

    Raises:
      ValueError: for a bad argument, or where n K E is beyond reason.
    """
    bins = _validate.integer_at_least("bins", bins, 1, "it is the batches of an epoch")
    z = _validate.positive("noise_multiplier", noise_multiplier)
    epochs = _validate.integer_at_least("epochs", epochs, 1)
    draws = _validate.integer_at_least("draws", draws, 1)
    if 2.0 * draws * bins * epochs > _MOST_NUMBERS:
        _validate.fail(
            "privacy.accountant",
            "monte_carlo",
            f"would draw {2.0 * draws * bins * epochs:.1g} numbers for {epochs} epochs "
            f"of {bins} batches",
            "raise delta, lower the number of steps, or use sampling.poisson",
        )
    # Under P the record's own bin may be taken to be the first, by symmetry.
    from_p = _draw(bins, z, epochs, draws, np.random.Philox([_SEED, seed, 0]), 1.0)
    from_q = -_draw(bins, z, epochs, draws, np.random.Philox([_SEED, seed, 1]), 0.0)
    slack = epochs * _SLACK * max(1.0, z**-2)
    return Losses(draws, _positive(from_p + slack), _positive(from_q + slack))


def _positive(losses: np.ndarray) -> np.ndarray:
    return np.sort(losses[losses > 0])[::-1]


def _draw(
    bins: int,
    z: float,
    epochs: int,
    draws: int,
    source: np.random.Philox,
    shift: float,
) -> np.ndarray:
    """Losses, float64[draws]; the first bin's mean is `shift`."""
    generator = np.random.Generator(source)
    total = np.zeros(draws)
    rows = max(1, _CHUNK // bins)
    for _ in range(epochs):
        for start in range(0, draws, rows):
            part = total[start : start + rows]
            x = generator.standard_normal((len(part), bins), np.float32)
            x *= np.float32(1 / z)
            x[:, 0] += np.float32(shift / z**2)
            top = x.max(axis=1)
            x -= top[:, None]
            np.exp(x, out=x)
            inside = np.log(x.mean(axis=1, dtype=np.float64))
            part += inside + top.astype(np.float64) - 1 / (2 * z**2)
    return total


def _risk(level: float) -> float:
    return 1 - _validate.in_open_interval("level", level, 0, 1, "0.99 is usual")


def _kl(p: float, q: float) -> float:
    """Relative entropy of coins with chances p and q."""
    left = p * math.log(p / q) if p > 0 else 0.0
    right = (1 - p) * (math.log1p(-p) - math.log1p(-q)) if p < 1 else 0.0
    return left + right


def _upper(mean: float, count: int, risk: float) -> float:
    """The largest chance that a sample mean as low as `mean` does not rule out."""
    bound = -math.log(risk) / count
    if mean == 0:
        return -math.expm1(-bound)
    top = math.nextafter(1.0, 0.0)
    if mean >= top or _kl(mean, top) <= bound:
        return 1.0
    return optimize.brentq(lambda u: _kl(mean, u) - bound, mean, top, xtol=1e-15)


def _lower(mean: float, count: int, risk: float) -> float:
    bound = -math.log(risk) / count
    if mean == 0:
        return 0.0
    low = mean * 1e-12
    if _kl(mean, low) <= bound:
        return 0.0
    return optimize.brentq(lambda u: _kl(mean, u) - bound, low, mean, xtol=1e-15)
