"""Noise on the sum of clipped messages, once a round, whoever came.

| link | noise | one release is |
| --- | --- | --- |
| `central` | N(0, (z S)^2) on the sum, S = C s_max | a round |
| `banded` | correlated over rounds; users return after b rounds or more | the run |
| `discrete` | N_Z on a grid, drawn exactly | a round |
| `local` | N(0, (z C)^2) by every client | a report |

Noise is drawn by the server from a root of its own (never from the key of the round,
which has 64 bits), never rescaled by survivors; an empty cohort gets it as well. The
denominator that follows is a constant.

Banded: with T rounds, bands c of norm |c| and returns at least b = len(c) rounds apart,
a user moves T G by at most S |c| sqrt(ceil(T / b)), in orthogonal directions, and the
fresh noise has z times that. The whole run is one Gaussian release with multiplier z.
The selector enforces b, and whoever runs it stops after T rounds.

Local: a client's report has sensitivity 2 C (one report for any other). Independent
normals add up to a normal, so the server draws one of stddev z C sqrt(sum s_k^2) over
those who came: exact for Gaussian noise only.

Example::

    weight = weighting.of(rules.mean(cohort=50))
    chain.chain(clipping.clip(1.0), weight, dp.central(noise_multiplier=1.0))
    strategy = correlated_noise.optimize(steps=500, bands=10)
    noise = dp.banded(strategy, noise_multiplier=5, rounds=500)
    chain.chain(clipping.clip(1.0), weight, noise)

References: https://arxiv.org/abs/1710.06963, https://arxiv.org/abs/2103.00039,
https://arxiv.org/abs/2306.08153, https://arxiv.org/abs/2004.00010
"""

import math

import jax
import jax.numpy as jnp

from trustml import _validate, rng
from trustml.federated.aggregation import link
from trustml.privacy import correlated_noise, discrete_gaussian, noise, quantile

_CURE = "leave the link out to train without privacy"


def central(noise_multiplier: float) -> link.Link:
    """Gaussian noise of stddev z S on the sum; z' S beside a tracked clip norm.

    Args:
      noise_multiplier: z > 0, of what a round releases, bits included.

    Raises:
      ValueError: when built, for a bad z; with a chain, if the bits alone cost more.
    """
    z = _validate.positive("noise_multiplier", noise_multiplier, _CURE)

    def check(bounds: link.Bounds):
        _of_updates(z, bounds)

    def init(like, root, bounds):
        del like, bounds
        return noise.init(root)

    def server(state, message, cohort, bounds, key, info):
        del cohort, key
        scale = jnp.asarray(_of_updates(z, bounds) * bounds.total, jnp.float32)
        return _added(state, message, scale, info)

    def release(bounds: link.Bounds):
        return link.Release("gaussian", z, bounds.largest_weight)

    label = f"dp.central({z:g})"
    return link.Link(
        "noise", label, init=init, check=check, server=server, release=release
    )


def local(noise_multiplier: float) -> link.Link:
    """The sum of Gaussian noise of stddev z C that every client who came has added.

    Args:
      noise_multiplier: z > 0, stddev over C. The release has half of it, since another
        report may lie 2 C away.
    """
    z = _validate.positive("noise_multiplier", noise_multiplier, _CURE)

    def init(like, root, bounds):
        del like, bounds
        return noise.init(root)

    def server(state, message, cohort, bounds, key, info):
        del key
        own = jnp.asarray(z * bounds.client, jnp.float32)
        return _added(state, message, own * jnp.sqrt(cohort.squared_weight_sum), info)

    def release(bounds: link.Bounds):
        return link.Release("local", z / 2, bounds.largest_weight)

    # A tracked norm would have to be private by itself, report by report.
    return link.Link(
        "noise",
        f"dp.local({z:g})",
        init=init,
        server=server,
        release=release,
        fixed_norm=True,
    )


def banded(
    strategy: correlated_noise.Strategy, *, noise_multiplier: float, rounds: int
) -> link.Link:
    """Noise that `strategy` correlates over rounds (DP-FTRL, banded factorisation).

    Args:
      strategy: from `correlated_noise`; its number of bands is b, the least number of
        rounds between two participations of a user.
      noise_multiplier: z > 0, of all rounds together.
      rounds: T.

    Raises:
      ValueError: when built, for a bad argument.
    """
    z = _validate.positive("noise_multiplier", noise_multiplier, _CURE)
    rounds = _validate.integer_at_least("rounds", rounds, 1, "count the rounds")
    times = math.ceil(rounds / strategy.bands)

    def mechanism(bounds: link.Bounds, like) -> tuple[noise.Mechanism, float]:
        stddev = z * bounds.total * strategy.column_norm * math.sqrt(times)
        return correlated_noise.banded(strategy, stddev=stddev, like=like), stddev

    def init(like, root, bounds):
        return mechanism(bounds, like)[0].init(root)

    def server(state, message, cohort, bounds, key, info):
        del cohort, key
        made, stddev = mechanism(bounds, message.update)
        noisy, state = made.update(message.update, state)
        info = info._replace(noise_stddev=jnp.float32(stddev))
        return message._replace(update=noisy), state, info

    def release(bounds: link.Bounds):
        largest = bounds.largest_weight
        return link.Release("banded", z, largest, rounds, strategy.bands)

    return link.Link(
        "noise",
        f"dp.banded(bands={strategy.bands}, noise_multiplier={z:g}, rounds={rounds})",
        init=init,
        server=server,
        release=release,
        fixed_norm=True,
    )


def discrete(noise_multiplier: float, *, size: int, bits: int = 12) -> link.Link:
    """Discrete Gaussian noise on a grid, on the host; see `discrete_gaussian`.

    Behind a secure sum the sensitivity is that of its lattice.

    Args:
      noise_multiplier: z > 0; the one of the release is at least that.
      size: coordinates of an update.
      bits: of the grid; see `discrete_gaussian.grid`.
    """
    z = _validate.positive("noise_multiplier", noise_multiplier, _CURE)
    size = _validate.integer_at_least("size", size, 1, "count the coordinates")

    def grid(bounds: link.Bounds) -> discrete_gaussian.Grid:
        rough = discrete_gaussian.grid(1.0, bounds.total, size, bits=bits)
        # Rounded up with a little to spare, lest float64 rounds the multiplier down.
        stddev = z * rough.sensitivity * rough.spacing * (1 + 1e-12)
        return discrete_gaussian.grid(stddev, bounds.total, size, bits=bits)

    def check(bounds: link.Bounds):
        discrete_gaussian.mechanism(grid(bounds))

    def init(like, root, bounds):
        if link.size(like) != size:
            cure = "give dp.discrete the coordinates of the parameters"
            bound = f"is not the {link.size(like)} coordinates of a message"
            _validate.fail("size", size, bound, cure)
        return discrete_gaussian.mechanism(grid(bounds)).init(root)

    def server(state, message, cohort, bounds, key, info):
        del cohort, key
        made = grid(bounds)
        noisy, state = discrete_gaussian.mechanism(made).update(message.update, state)
        info = info._replace(noise_stddev=jnp.float32(made.noise_stddev))
        return message._replace(update=noisy), state, info

    def release(bounds: link.Bounds):
        multiplier = grid(bounds).noise_multiplier
        return link.Release("discrete", multiplier, bounds.largest_weight)

    return link.Link(
        "noise",
        f"dp.discrete({z:g}, size={size})",
        init=init,
        check=check,
        server=server,
        release=release,
        fixed_norm=True,
    )


def _of_updates(z: float, bounds: link.Bounds) -> float:
    """Multiplier of the updates, so that they and the bits cost z together."""
    if bounds.bit_stddev is None:
        return z
    return quantile.gradient_multiplier(z, bounds.bit_stddev / bounds.largest_weight, 1)


def _added(state: noise.NoiseState, message: link.Message, scale: jax.Array, info):
    key = rng.step_key(state.root, state.step)
    noisy = noise.add(message.update, key, scale)
    after = noise.NoiseState(state.root, state.step + 1)
    info = info._replace(noise_stddev=scale)
    return message._replace(update=noisy), after, info
