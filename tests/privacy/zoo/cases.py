"""What a case is, and the random data of one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FP32 = 1e-5
BF16 = 1e-2


class Case(NamedTuple):
    """A loss, its parameters and data, and what is expected of a clipping method."""

    name: str
    init: Callable[[Any], Any]  # key -> params
    loss: Callable[[Any, Any, Any], jax.Array]  # one example
    make_batch: Callable[[np.random.Generator, int], dict[str, np.ndarray]]
    tol: float = FP32  # relative
    expected_materialised: int | None = None

    def params(self, seed: int = 1):
        """Random parameters of the right shapes, biases and scales too."""
        rng = np.random.default_rng(seed)

        def leaf(like):
            values = rng.normal(size=like.shape)
            if len(like.shape) > 1:
                values = values / np.sqrt(like.shape[-2])
            else:
                values = 0.7 + 0.5 * values
            return values.astype(like.dtype)

        return jax.tree.map(leaf, jax.eval_shape(self.init, jax.random.key(0)))


# ---- data ---------------------------------------------------------------------------


def floats(*shape, **more):
    """Batches {'x': float32[B, *shape], 'y': int32[B] below 3} plus `more` fields."""

    def make(rng, size):
        batch = {
            "x": rng.normal(size=(size, *shape)).astype(np.float32),
            "y": rng.integers(3, size=size).astype(np.int32),
        }
        return batch | {name: field(rng, size) for name, field in more.items()}

    return make


def ints(high, *shape):
    """A field int32[B, *shape] of integers below `high`."""
    return lambda rng, size: rng.integers(high, size=(size, *shape)).astype(np.int32)


def tokens(vocab, length, repeat=False, low=0):
    """Batches {'t': int32[B, length], 'y': int32[B]}; `repeat` draws few distinct."""

    def make(rng, size):
        high = low + 3 if repeat else vocab
        ids = rng.integers(low, high, size=(size, length)).astype(np.int32)
        return {"t": ids, "y": rng.integers(3, size=size).astype(np.int32)}

    return make


def weights(**shapes):
    """init: normal leaves of the given shapes."""

    def init(key):
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(k, s)
            for k, (name, s) in zip(keys, shapes.items(), strict=True)
        }

    return init


def xent(logits, label):
    """Cross-entropy of one example; float32[]."""
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(logits) - logits[label]


def mean0(x):
    """Mean over positions."""
    return jnp.mean(x, axis=0)
