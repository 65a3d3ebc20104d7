"""Discrete Gaussian noise: integers drawn exactly, on a grid that is accounted for.

    n = round(sums / g) + N_Z(0, s^2),   noisy = g n,   P[N_Z = k] ~ exp(-k^2 / (2 s^2))

A float32 normal is not a Gaussian (`noise`, threat model); here the noise is an integer
drawn without any rounding, from uniform integers alone (Canonne, Kamath, Steinke 2020,
Algorithms 1 to 3, with the scale s an integer), and added to integers.

What rounding costs. Clipped gradients are rounded after they are summed, since no
gradient of one example exists before that. Two neighbouring sums S apart in L2 then
differ by at most

    D = S / g + sqrt(d)        grid steps, d coordinates, each moved by up to 1/2 twice,

and D is the sensitivity that is accounted. With g <= S 2^-b / sqrt(d) that is a factor
of 1 + 2^-b; b = 12 loses a four-thousandth of the noise.

What is known of the loss. For any integer vector v of L2 norm D the Renyi divergences
of N_Z(0, s^2)^d and v + N_Z(0, s^2)^d are at most a D^2 / (2 s^2), those of a Gaussian,
and at whole orders a the moments E_Q (P/Q)^a are equal to a Gaussian's of |v|. Hence a
release costs what `GaussianDpEvent(s / D)` costs by RDP, and one of a Poisson sample
what it costs by RDP at whole orders; in many dimensions PLD knows no discrete Gaussian.
For noise that is itself a sum of discrete Gaussians (one a client, arXiv 2102.06387)
this does not hold without the correction of that paper.

Threat model: that of `noise`, less the floating-point sampling. What is left: sums are
formed in float32 before they are rounded here, so S is that of the clipper up to its
own float32 rounding; Philox stands for randomness; time depends on the numbers drawn.

It runs on the host, in int64, at about 0.4 us a coordinate: for small models.

Example::

    grid = discrete_gaussian.grid(noise_stddev, clipper.sensitivity(relation), d)
    mechanism = discrete_gaussian.mechanism(grid)
    event = discrete_gaussian.DiscreteGaussianDpEvent(grid.noise_multiplier)
    accounting.epsilon(event, 1e-5, relation, accountant='rdp')
    made = plan.make(clipper, sampler, grid_bits=12, accountant='rdp', ...)   # all that

References: https://arxiv.org/abs/2004.00010, https://arxiv.org/abs/2102.06387
"""

import dataclasses
import functools
import hashlib
import math
from typing import Any

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate, rng
from trustml.privacy import noise

# Twice its square, times a loop's count of 60, is an int64.
_LARGEST_SCALE = 1 << 28
_FARTHEST = 2.0**60  # grid steps a sum may be from 0


@dataclasses.dataclass(frozen=True)
class DiscreteGaussianDpEvent(dp_accounting.DpEvent):
    """One release of an integer vector plus N_Z(0, s^2) in every coordinate.

    Attributes:
      noise_multiplier: s / D, with D the L2 sensitivity of the integer vector.
    """

    noise_multiplier: float


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where sums are rounded to, and what noise they get there; made by `grid`.

    Attributes:
      spacing: g, a power of two, in units of the sums.
      scale: s, a whole number of grid steps.
      sensitivity: D = S / g + sqrt(d), in grid steps.
      size: d, coordinates of all leaves together.
    """

    spacing: float
    scale: int
    sensitivity: float
    size: int

    @property
    def noise_stddev(self) -> float:
        """Parameter s g, in units of the sums; for s >= 1 the noise's own to 1e-6."""
        return self.scale * self.spacing

    @property
    def noise_multiplier(self) -> float:
        """Multiplier s / D, for the event."""
        return self.scale / self.sensitivity


def grid(noise_stddev: float, sensitivity: float, size: int, *, bits: int = 12) -> Grid:
    """The grid for sums of a given sensitivity, and at least the noise asked for.

    Args:
      noise_stddev: absolute, of the noise on the sum, > 0; rounded up to grid steps.
      sensitivity: S > 0, L2, of the sum before rounding; take it from the clipper.
      size: d >= 1, number of coordinates that are released.
      bits: b, from 1 to 30; rounding inflates the sensitivity by at most 1 + 2^-b.

    Raises:
      ValueError: naming field, value, bound and cure.
    """
    off = "set privacy.enabled=False to train without privacy"
    stddev = _validate.positive("noise_stddev", noise_stddev, off)
    bound = "take it from the clipper"
    sensitivity = _validate.positive("sensitivity", sensitivity, bound)
    size = _validate.integer_at_least("size", size, 1, "count the coordinates")
    bits = _validate.integer_at_least("privacy.grid_bits", bits, 1, "12 is usual")
    if bits > 30:
        _validate.fail("privacy.grid_bits", bits, "must be at most 30", "12 is usual")
    spacing = 2.0 ** math.floor(math.log2(sensitivity / math.sqrt(size)) - bits)
    scale = math.ceil(stddev / spacing)
    return Grid(spacing, scale, sensitivity / spacing + math.sqrt(size), size)


def mechanism(grid: Grid) -> noise.Mechanism:
    """Rounds sums to the grid and adds N_Z(0, scale^2) to every coordinate.

    Args:
      grid: from `grid`.

    Returns:
      `noise.Mechanism`, with a state like that of `noise.gaussian`. `update(sums,
      state)`: sums are float32 leaves, None leaves pass through; it may be called under
      `jax.jit`, and works on the host. What comes out is a multiple of the spacing, but
      for float32 rounding beyond 2^24 grid steps, which is post-processing.

    Raises:
      ValueError: when built, if the noise is more than 2^28 grid steps; when traced,
        if a leaf is not float32, or all leaves together hold more coordinates than the
        grid was made for; when run, if a sum is not finite.
    """
    if grid.scale > _LARGEST_SCALE:
        _validate.fail(
            "privacy.grid_bits",
            f"scale {grid.scale:.3g}",
            "makes the noise more than the 2^28 grid steps that are drawn exactly",
            "lower it, or train fewer parameters",
        )

    def init(root) -> noise.NoiseState:
        state = noise.init(root)  # checks the root
        own = rng.stream(root, "discrete_noise")
        return state._replace(root=own)

    def update(sums, state: noise.NoiseState, within=None):
        noise.check_untracked(within)
        leaves, treedef = noise.named_leaves(sums)
        _check_size(sum(leaf.size for _, leaf in leaves), grid)
        noisy = []
        for name, leaf in leaves:
            noise.check_float32(leaf, name)
            on_host = functools.partial(_add, grid, name)
            like = jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
            noisy.append(
                jax.pure_callback(
                    on_host,
                    like,
                    *(leaf, state.root.words, state.step),
                    vmap_method="sequential",
                )
            )
        return treedef.unflatten(noisy), state._replace(step=state.step + 1)

    return noise.Mechanism(init, update)


def sample(generator: np.random.Generator, scale: int, count: int) -> np.ndarray:
    """`count` draws of N_Z(0, scale^2), int64[count]; exact given uniform integers."""
    kept, missing = [], count
    while missing > 0:
        found = _propose(generator, scale, 2 * missing + 16)[:missing]
        kept.append(found)
        missing -= len(found)
    return np.concatenate([np.zeros(0, np.int64), *kept])


def sample_laplace(
    generator: np.random.Generator, scale: int, count: int
) -> np.ndarray:
    """`count` draws of the law exp(-|k| / scale), int64[count]; exact likewise."""
    kept, missing = [np.zeros(0, np.int64)], count
    while missing > 0:
        u, v, negative = _laplace(generator, scale, 2 * missing + 16)
        y = u + scale * v
        kept.append(np.where(negative, -y, y)[:missing])
        missing -= len(kept[-1])
    return np.concatenate(kept)


def bounded(event: Any) -> bool:
    """Whether `discrete` of this event has a bound."""
    if isinstance(event, dp_accounting.ComposedDpEvent):
        return all(bounded(e) for e in event.events)
    while isinstance(
        event, dp_accounting.SelfComposedDpEvent | dp_accounting.PoissonSampledDpEvent
    ):
        event = event.event
    return isinstance(event, dp_accounting.GaussianDpEvent)


def discrete(event: Any) -> Any:
    """The event with discrete Gaussian releases for its Gaussian ones."""
    if isinstance(event, dp_accounting.ComposedDpEvent):
        return dp_accounting.ComposedDpEvent([discrete(e) for e in event.events])
    if isinstance(event, dp_accounting.SelfComposedDpEvent):
        return dp_accounting.SelfComposedDpEvent(discrete(event.event), event.count)
    if isinstance(event, dp_accounting.GaussianDpEvent):
        return DiscreteGaussianDpEvent(event.noise_multiplier)
    if isinstance(event, dp_accounting.PoissonSampledDpEvent):
        inner = discrete(event.event)
        return dp_accounting.PoissonSampledDpEvent(event.sampling_probability, inner)
    _validate.fail(
        "privacy.grid_bits",
        type(event).__name__,
        "has no bound with discrete Gaussian noise",
        "sample with sampling.poisson or shuffled, or leave grid_bits out",
    )


def _check_size(found: int, grid: Grid) -> None:
    if found > grid.size:
        _validate.fail(
            "sums",
            found,
            f"coordinates are more than the {grid.size} whose rounding is accounted",
            "make the grid for the number of trained parameters",
        )


def _add(grid: Grid, path: str, sums, words, step) -> np.ndarray:
    """Noisy sums of one leaf, on the host."""
    sums = np.asarray(sums)
    if not np.all(np.isfinite(sums)):
        cure = "clip before noise is added"
        _validate.fail(f"sums{path}", "NaN or inf", "must be finite", cure)
    # The spacing is a power of two: in float64 the division is exact.
    steps = np.rint(sums.astype(np.float64) / grid.spacing)
    steps = np.clip(steps, -_FARTHEST, _FARTHEST).astype(np.int64)
    drawn = sample(_generator(path, words, step), grid.scale, sums.size)
    steps += drawn.reshape(sums.shape)
    return (steps * grid.spacing).astype(np.float32)


def _generator(path: str, words, step) -> np.random.Generator:
    """Random numbers of one leaf and step, keyed by all 128 bits of the root."""
    key = int.from_bytes(np.asarray(words).astype(">u4").tobytes(), "big")
    leaf = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")
    # The two low words count the numbers of one leaf and step: 2**128 of them.
    counter = np.array([0, 0, int(step), leaf], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _propose(generator: np.random.Generator, scale: int, count: int) -> np.ndarray:
    """Those of `count` draws of a discrete Laplace law that pass for N_Z(0, scale^2).

    With y = u + s v of the law exp(-|y| / s), the chance to be kept is
    exp(-(|y| - s)^2 / (2 s^2)), and with ||y| - s| = s p + r that is the product of
    exp(-1/2) p^2 times, exp(-r/s) p times, and exp(-r^2 / (2 s^2)).
    """
    u, v, negative = _laplace(generator, scale, count)
    p = np.where(v > 0, v - 1, np.where(u == 0, 1, 0))
    r = np.where(v > 0, u, np.where(u == 0, 0, scale - u))
    kept = _repeated(generator, np.ones_like(r), 2, p * p)
    kept[kept] = _repeated(generator, r[kept], scale, p[kept])
    kept[kept] = _coins(generator, r[kept] ** 2, 2 * scale**2)
    y = (u + scale * v)[kept]
    return np.where(negative[kept], -y, y)


def _laplace(generator, scale: int, count: int):
    """(u, v, negative) of at most `count` draws u + s v of the law exp(-|y| / s)."""
    u = generator.integers(0, scale, count)
    u = u[_coins(generator, u, scale)]
    v = _runs(generator, len(u))
    negative = generator.integers(0, 2, len(u)) == 1
    once = ~(negative & (u == 0) & (v == 0))  # 0 has one sign
    return u[once], v[once], negative[once]


def _coins(generator, numerators: np.ndarray, denominator: int) -> np.ndarray:
    """Heads with chance exp(-numerator / denominator), which is at most 1; bool[n].

    The first k at which a coin of chance x/k fails is odd with chance exp(-x).
    """
    heads = np.zeros(len(numerators), bool)
    live, k = np.arange(len(numerators)), 1
    while len(live):
        # k reaches 60 with a chance of 1/60!, and an int64 would not hold 64.
        more = generator.integers(0, denominator * k, len(live)) < numerators[live]
        heads[live[~more]] = k % 2 == 1
        live, k = live[more], k + 1
    return heads


def _runs(generator: np.random.Generator, count: int) -> np.ndarray:
    """Heads of chance exp(-1) before the first tail, int64[count]."""
    lengths, live = np.zeros(count, np.int64), np.arange(count)
    while len(live):
        live = live[_coins(generator, np.ones(len(live), np.int64), 1)]
        lengths[live] += 1
    return lengths


def _repeated(generator, numerators, denominator: int, times) -> np.ndarray:
    """Heads if `times` coins of chance exp(-numerator / denominator) all are."""
    heads, left = np.ones(len(numerators), bool), times.copy()
    live = np.flatnonzero(left > 0)
    while len(live):
        good = _coins(generator, numerators[live], denominator)
        heads[live[~good]] = False
        left[live] -= 1
        live = live[good & (left[live] > 0)]
    return heads
