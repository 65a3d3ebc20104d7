"""Banded matrix factorisation: noise of a step that later steps partly take back.

    Y_t = Z_t - sum_{k=1}^{min(b-1, t)} c_k Y_{t-k},    Z_t ~ N(0, (z C col)^2 I) iid,

that is Y = inv(T) Z for the lower-triangular Toeplitz T with bands 1, c_1 ... c_{b-1},
and col = sqrt(sum_k c_k^2), the norm of its columns. An optimiser adds up what it is
given, so what hurts is not Y but its prefix sums A Y, whose noise partly cancels:

    mean squared error = (z C)^2 col^2 ||A inv(T)||_F^2 / n         (`squared_error`)

over n steps. `optimize` finds the c that make it least, by L-BFGS from the square root
of A, c_k = binom(2k, k) / 4^k. Where the steps of an example lie b or more apart, each
moves T G by at most S col, in directions orthogonal to the others.
`sampling.cyclic_poisson` keeps them apart; the event is then that of ceil(n/b)
Poisson-sampled releases at b times the rate, with noise multiplier z. More bands cancel
more and amplify less: `choose_bands` weighs the two. One band is DP-SGD, exactly.

Momentum and Adam come after the noise and cost nothing; `momentum` only tells what A
is. Memory: b-1 buffers like the parameters.

Dimension key: n steps, b bands.

Example::

    strategy = correlated_noise.optimize(steps=2000, bands=8)
    sampler = sampling.cyclic_poisson(60_000, 256, bands=8, physical_batch_size=64)
    made = plan.make(..., sampler, steps=2000, params=params, strategy=strategy)
    state = made.mechanism.init(rng.root())
    noisy, state = made.mechanism.update(sums, state)

References: https://arxiv.org/abs/2306.08153 (BandMF, amplification),
https://arxiv.org/abs/2202.11205 (square root of the prefix sums),
https://arxiv.org/abs/2405.15913 (banded Toeplitz strategies at scale).
"""

import math
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float
from scipy import optimize as scipy_optimize
from scipy import signal, special

from trustml import _validate, rng
from trustml.privacy import accounting, calibration, noise, sampling

ERRORS = ("mean", "max")


class Strategy(NamedTuple):
    """A banded lower-triangular Toeplitz matrix.

    Attributes:
      coefficients: c_0 = 1, c_1 ... c_{b-1}; the values of its bands.
    """

    coefficients: tuple[float, ...]

    @property
    def bands(self) -> int:
        """The number b of bands."""
        return len(self.coefficients)

    @property
    def column_norm(self) -> float:
        """The largest L2 norm of a column, sqrt(sum_k c_k^2)."""
        return math.sqrt(math.fsum(c * c for c in self.coefficients))


class CorrelatedState(NamedTuple):
    """What must persist between steps.

    Attributes:
      noise: keys and counter, see `noise.NoiseState`.
      buffers: the noise of the last b-1 releases, like the parameters with a leading
        axis [b-1]; slot t mod (b-1) holds Y_t. As secret as the root.
    """

    noise: noise.NoiseState
    buffers: Any


class Choice(NamedTuple):
    """What `choose_bands` found.

    Attributes:
      strategy: the best one.
      table: for every number of bands tried (bands, noise multiplier, error), where
        error is that of the prefix sums with clip norm 1, a standard deviation.
    """

    strategy: Strategy
    table: tuple[tuple[int, float, float], ...]


def strategy(coefficients: Iterable[float]) -> Strategy:
    """The strategy with these bands.

    Raises:
      ValueError: if they are not finite or the first is not 1.
    """
    given = tuple(float(c) for c in coefficients)
    if not given or given[0] != 1.0:
        first = given[0] if given else None
        cure = "divide all by the first; the plan scales the noise"
        _validate.fail("strategy.coefficients[0]", first, "must be 1", cure)
    for number, c in enumerate(given):
        _validate.finite(f"strategy.coefficients[{number}]", c, "use optimize")
    return Strategy(given)


def optimize(
    steps: int, bands: int, *, momentum: float = 0.0, error: str = "mean"
) -> Strategy:
    """The b-banded strategy of least error over `steps` prefix sums.

    Args:
      steps: n >= bands.
      bands: b >= 1.
      momentum: beta in [0, 1) of the optimiser; A then holds the sums of what momentum
        makes of the gradients. 0 for plain sums.
      error: 'mean' over the steps, or 'max', that of the last.

    Raises:
      ValueError: for a bad argument; the sentence names field, value, bound and cure.
    """
    steps = _steps(steps)
    bands = _validate.integer_at_least("bands", bands, 1, "1 is DP-SGD")
    if bands > steps:
        _validate.fail("bands", bands, f"must be at most steps={steps}", "lower it")
    workload, weights = _workload(steps, momentum), _weights(steps, error)
    k = np.arange(1, bands)
    first = np.exp(special.gammaln(2 * k + 1) - 2 * special.gammaln(k + 1)) / 4.0**k
    if bands == 1:
        return Strategy((1.0,))

    def objective(tail: np.ndarray) -> tuple[float, np.ndarray]:
        # Logarithm of col^2 sum_t w_t s_t^2, where s = A / c as power series, so that
        # ds/dc_k is s / c, negative and k later.
        c = np.concatenate([[1.0], tail])
        with np.errstate(over="ignore", invalid="ignore"):
            s = signal.lfilter([1.0], c, workload)
            r = signal.lfilter([1.0], c, s)
            total, col2 = float(np.sum(weights * s * s)), float(c @ c)
            if not (math.isfinite(total) and np.all(np.isfinite(r))):
                return 1e6, np.zeros_like(tail)
            weighted = weights * s
            slopes = [weighted[j:] @ r[: steps - j] for j in range(1, bands)]
        gradient = 2 * tail / col2 - 2 * np.array(slopes) / total
        return math.log(total) + math.log(col2), gradient

    options = {"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-8}
    found = scipy_optimize.minimize(
        objective, first, jac=True, method="L-BFGS-B", options=options
    )
    best = found.x if found.fun <= objective(first)[0] else first
    return Strategy((1.0, *(float(c) for c in best)))


def squared_error(
    strategy: Strategy, steps: int, *, momentum: float = 0.0, error: str = "mean"
) -> float:
    """Squared error of the prefix sums for z = C = 1; times (z C)^2 for others.

    Args and errors as for `optimize`; what it minimises.
    """
    steps = _steps(steps)
    workload, weights = _workload(steps, momentum), _weights(steps, error)
    s = signal.lfilter([1.0], strategy.coefficients, workload)
    return float(strategy.column_norm**2 * np.sum(weights * s * s))


def released_scale(strategy: Strategy, steps: int) -> Float[np.ndarray, " steps"]:
    """Stddev of Y_t over that of Z_t, for every step t."""
    unit = np.zeros(_steps(steps))
    unit[0] = 1.0
    inverse = signal.lfilter([1.0], strategy.coefficients, unit)
    return np.sqrt(np.cumsum(inverse**2))


def choose_bands(
    num_examples: int,
    expected_batch_size: float,
    *,
    steps: int,
    epsilon: float,
    delta: float,
    relation: accounting.Relation | str,
    candidates: Iterable[int] | None = None,
    momentum: float = 0.0,
    error: str = "mean",
    accountant: str = "pld",
    cache_dir: str | os.PathLike | None = None,
) -> Choice:
    """The number of bands of least error at a given epsilon, and its strategy.

    Reads nothing but public numbers, so choosing costs no privacy.

    Args:
      num_examples: N.
      expected_batch_size: m.
      steps: n.
      epsilon: the target.
      delta: in (0, 1).
      relation: neighbouring relation.
      candidates: numbers of bands to try; None: 1, 2, 4 ... up to N/m and n. Those
        that leave less than m examples in a part are passed over.
      momentum: see `optimize`.
      error: see `optimize`.
      accountant: see `plan.make`.
      cache_dir: see `plan.make`.

    Raises:
      ValueError: for a bad argument, or if no candidate is possible.
    """
    steps, relation = _steps(steps), accounting.relation(relation)
    most = min(steps, int(num_examples / expected_batch_size))
    if candidates is None:
        candidates = [2**power for power in range(max(most, 1).bit_length())]
    tried = sorted({b for b in candidates if b <= most})
    if not tried:
        bound = f"must hold a number up to {most}, examples / batch size and steps"
        _validate.fail("candidates", list(candidates), bound, "try 1, 2, 4, 8")
    table, best = [], {}
    for bands in tried:
        sampler = sampling.cyclic_poisson(
            num_examples, expected_batch_size, bands=bands, physical_batch_size=1,
            seed=0,
        )  # fmt: skip

        def event_of(z: float, sampler=sampler) -> accounting.Event:
            return sampler.event(z, 1.0, steps, relation)

        z = calibration.calibrate(
            event_of, epsilon, delta, relation, accountant, cache_dir
        )
        best[bands] = optimize(steps, bands, momentum=momentum, error=error)
        square = squared_error(best[bands], steps, momentum=momentum, error=error)
        table.append((bands, z, z * math.sqrt(square)))
    least = min(table, key=lambda row: row[2])
    return Choice(best[least[0]], tuple(table))


def banded(strategy: Strategy, *, stddev: float, like: Any) -> noise.Mechanism:
    """Adds Y, the noise that `strategy` correlates over steps.

    Args:
      strategy: T.
      stddev: of Z, absolute: z C col. Take the mechanism from a plan.
      like: what the sums look like: arrays or shapes; None leaves pass through.

    Returns:
      Mechanism, pure, for use under `jax.jit`. `update(sums, state)`: float32 leaves.

    Raises:
      ValueError: when built, if stddev is not finite and > 0; when traced, if the sums
        are not like `like` in float32.
    """
    if strategy.bands == 1:
        return noise.gaussian(stddev)
    scales = noise.stddevs(stddev)
    kept = strategy.bands - 1
    # Row s for a step that is s mod (b-1): slot j holds Y of (s - j - 1) mod (b-1) + 1
    # steps ago, zeros before the first.
    slots = np.arange(kept)
    ago = (slots[:, None] - slots[None, :] - 1) % kept + 1
    table = -np.asarray(strategy.coefficients, np.float32)[ago]

    def init(root) -> CorrelatedState:
        buffers = jax.tree.map(
            lambda x: jnp.zeros((kept, *jnp.shape(x)), jnp.float32), like
        )
        return CorrelatedState(noise.init(root), buffers)

    def update(sums, state: CorrelatedState, within=None):
        noise.check_untracked(within)
        _check_like(sums, state.buffers)
        step = state.noise.step
        slot = step % kept
        weights = jnp.asarray(table)[slot]
        taken_back = jax.tree.map(
            lambda past: jnp.tensordot(
                weights, past, axes=1, precision=lax.Precision.HIGHEST
            ),
            state.buffers,
        )
        key, scale = rng.step_key(state.noise.root, step), noise.at_step(scales, step)
        fresh = noise.add(taken_back, key, scale)
        noisy = jax.tree.map(jnp.add, sums, fresh)
        buffers = jax.tree.map(
            lambda past, y: lax.dynamic_update_index_in_dim(past, y, slot, 0),
            state.buffers,
            fresh,
        )
        after = noise.NoiseState(state.noise.root, step + 1)
        return noisy, CorrelatedState(after, buffers)

    return noise.Mechanism(init, update)


def _check_like(sums: Any, buffers: Any) -> None:
    same = jax.tree.structure(sums) == jax.tree.structure(buffers)
    found = jax.tree_util.tree_leaves_with_path(sums)
    if same:
        wanted = [past.shape[1:] for past in jax.tree.leaves(buffers)]
        for (path, leaf), shape in zip(found, wanted, strict=True):
            if leaf.shape != shape or leaf.dtype != jnp.float32:
                _validate.fail(
                    f"sums{jax.tree_util.keystr(path)}",
                    f"{leaf.dtype}{list(leaf.shape)}",
                    f"must be float32{list(shape)}, like the buffers of the noise",
                    "accumulate clipped gradients of the parameters given to the plan",
                )
    else:
        _validate.fail(
            "sums",
            [jax.tree_util.keystr(path) for path, _ in found],
            "have other leaves than the buffers of the noise",
            "give plan.make the parameters that are trained",
        )


def _steps(steps: int) -> int:
    return _validate.integer_at_least("steps", steps, 1, "take a step or more")


def _workload(steps: int, momentum: float) -> np.ndarray:
    """First column of A, Toeplitz: what a gradient adds to every later sum."""
    cure = "0.9 is usual, 0 for none"
    beta = _validate.in_half_open_interval("momentum", momentum, 0, 1, cure)
    return np.cumsum(beta ** np.arange(steps, dtype=np.float64))


def _weights(steps: int, error: str) -> np.ndarray:
    """How often, over all sums, the entry of lag t counts."""
    _validate.one_of("error", error, ERRORS)
    if error == "max":
        return np.ones(steps)
    return np.arange(steps, 0, -1) / steps
