"""Gaussian noise for the sum of clipped gradients.

    noisy = sums + stddev * N(0, I)        drawn once per logical batch, on the sum,
                                           after the cross-device sum

Noise is float32 whatever the model computes in: `jax.random.normal(..., bfloat16)` has
128 distinct values and is no Gaussian. Sums in any other dtype are refused. The key of
a leaf is fold_in(step key, leaf path), see `trustml.rng`; values do not depend on how
the sums are laid out over devices.

Threat model. Guaranteed: (epsilon, delta) for all released parameters and intermediate
updates, in real arithmetic, as long as noise and sampling seeds stay secret. Not
covered:
  - floating-point sampling of a continuous law: a float32 normal takes about 2**23
    values within [-5.42, 5.22]; precision attacks (https://arxiv.org/abs/2112.05307)
    exploit that, and `discrete_gaussian` is for those who mind;
  - the order of summation, and timing;
  - whatever is reported under `nonprivate/`;
  - hyper-parameter search, unless it is accounted (https://arxiv.org/abs/2110.03620).
A seeded root is `reproducible, not secret`: for tests and demonstrations only.

Releasing a step twice with the same noise and other data reveals the difference of the
data. The state is (root, step): save it together with params, optimiser and sampler.

Example::

    mechanism = noise.gaussian(stddev=plan.noise_stddev())
    state = mechanism.init(rng.root())                 # 128 bits from the OS
    for batch in batches:
        sums, info = clipped_grad(params, batch, mask, key)
        noisy, state = mechanism.update(sums, state)
        mean = jax.tree.map(lambda s: s / plan.expected_batch_size, noisy)
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate, rng

Sums = Any  # pytree of float32 arrays; None where a leaf is frozen


class NoiseState(NamedTuple):
    """What must persist between steps; plain arrays.

    Attributes:
      root: keys of the stream `noise`, uint32[2, 2], and whether they are secret.
      step: int32[], number of the next release; no two releases share it.
    """

    root: rng.Root
    step: jax.Array


def untracked(state) -> None:
    """The `clip_norms` of a mechanism whose clip norms are the clipper's own."""
    del state
    return None


class Mechanism(NamedTuple):
    """Pure functions, as in optax.

    Attributes:
      init: rng.Root -> state, a pytree of arrays.
      update: (sums, state, within=None) -> (noisy sums, state); `within` only where
        clip norms are tracked, see `trustml.privacy.quantile`.
      clip_norms: state -> float32[G], the clip norms of the next step; None where they
        are the clipper's own.
    """

    init: Callable[[rng.Root], Any]
    update: Callable[..., tuple[Sums, Any]]
    clip_norms: Callable[[Any], Any] = untracked


def gaussian(stddev: float | Iterable[float]) -> Mechanism:
    """Adds N(0, stddev^2) to every coordinate of every leaf.

    Args:
      stddev: absolute standard deviation of the noise on the *sum* of clipped
        gradients (noise multiplier times `l2_clip_norm`), > 0; one number, or one for
        every step (the last also beyond them). Take it from the plan.

    Returns:
      Mechanism. `update(sums, state)`: sums are float32 leaves of any shape, None
      leaves pass through. Pure, for use under `jax.jit`.

    Raises:
      ValueError: when built, if stddev is not finite and > 0; when traced, if a leaf
        is not float32 or init got something other than a `rng.Root`.
    """
    scales = stddevs(stddev)

    def update(sums: Sums, state: NoiseState, within=None) -> tuple[Sums, NoiseState]:
        check_untracked(within)
        scale = at_step(scales, state.step)
        noisy = add(sums, rng.step_key(state.root, state.step), scale)
        return noisy, NoiseState(state.root, state.step + 1)

    return Mechanism(init, update)


def init(root) -> NoiseState:
    """The state before the first release, in a stream of its own.

    Raises:
      ValueError: if `root` is not a `rng.Root`.
    """
    if not isinstance(root, rng.Root):
        _validate.fail(
            "root",
            type(root).__name__,
            "must be a trustml.rng.Root (a JAX key holds only 64 bits)",
            "use rng.root()",
        )
    return NoiseState(rng.stream(root, "noise"), jnp.zeros((), jnp.int32))


def stddevs(value: float | Iterable[float]) -> np.ndarray:
    """One or more standard deviations as float32[n]; each finite and > 0."""
    cure = "set privacy.enabled=False to train without privacy"
    given = list(value) if isinstance(value, Iterable) else [value]
    if not given:
        _validate.fail("noise_stddev", value, "is empty", "give one for every step")
    checked = [_validate.positive("noise_stddev", float(x), cure) for x in given]
    return np.asarray(checked, np.float32)


def at_step(scales: np.ndarray, step: jax.Array) -> jax.Array:
    """The entry of `step`, or the last one; float32[]."""
    if len(scales) == 1:
        return jnp.float32(scales[0])
    return jnp.asarray(scales)[jnp.minimum(step, len(scales) - 1)]


def add(sums: Sums, key: Any, scale: jax.Array | float) -> Sums:
    """Sums plus N(0, scale^2) from `key`, the key of one release.

    Raises:
      ValueError: when traced, if a leaf is not float32.
    """
    leaves, treedef = named_leaves(sums)
    scale = jnp.asarray(scale, jnp.float32)
    noisy = [_add(leaf, key, path, scale) for path, leaf in leaves]
    return treedef.unflatten(noisy)


def named_leaves(sums: Sums) -> tuple[list[tuple[str, jax.Array]], Any]:
    """(path, leaf) of every leaf, and the structure; a path names the leaf's key.

    Raises:
      ValueError: if two leaves have one path: their noise would be the same.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(sums)
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in flat]
    seen: set[str] = set()
    for path, _ in named:
        if path in seen:
            bound = "is the path of two leaves, which would get the same noise"
            _validate.fail("sums", path, bound, "give each parameter a name of its own")
        seen.add(path)
    return named, treedef


def check_untracked(within: Any) -> None:
    """Raises if `within` is given to a mechanism that has no use for it."""
    if within is not None:
        _validate.fail(
            "within",
            type(within).__name__,
            "is given to a mechanism that tracks no clip norm",
            "take the mechanism from the plan of the same clipper",
        )


def check_float32(leaf: jax.Array, path: str) -> None:
    """Raises if the sums of the leaf at `path` are of another dtype."""
    if leaf.dtype != jnp.float32:
        _validate.fail(
            f"sums{path}.dtype",
            str(leaf.dtype),
            "must be float32 (low-precision noise is not Gaussian)",
            "accumulate clipped gradients in float32",
        )


def _add(leaf: jax.Array, key: Any, path: str, scale: jax.Array) -> jax.Array:
    check_float32(leaf, path)
    normal = jax.random.normal(rng.leaf_key(key, path), leaf.shape, jnp.float32)
    return leaf + scale * normal
