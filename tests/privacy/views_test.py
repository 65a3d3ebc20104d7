"""One parameter seen through several views: slices of reshapes that may overlap.

What two views have in common is counted once in the norm only if the library sees that
they overlap. Chosen pairs, and random programs against a loop over examples.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.privacy import clipping

KEY = jax.random.key(0)
SIZE, USES, CLIP = 64, 3, 0.5


def compare(loss, w, batch):
    """Norms and clipped sum against one example at a time."""
    rows = len(batch["x"])
    clipper = clipping.clipped_grad(loss, l2_clip_norm=CLIP, method="book_keeping")
    # The programs share one key: they draw nothing.
    with jax.debug_key_reuse(False):
        sums, info = jax.jit(clipper)(w, batch, jnp.ones(rows, bool), KEY)
        grad = jax.jit(jax.grad(loss))
        each = [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(rows)]
        grads = np.stack([np.asarray(grad(w, one, KEY), np.float64) for one in each])
    grads = grads.reshape(rows, -1)
    norms = np.linalg.norm(grads, axis=1)
    # Above the true norm by the guard against cancelling sums; below by rounding only.
    got = np.asarray(info.norms_per_example)
    assert (got >= norms * (1 - 1e-5)).all(), got / norms
    np.testing.assert_allclose(got, norms, rtol=1e-3, atol=1e-6)
    clipped = grads * np.minimum(1, CLIP / np.maximum(norms, 1e-30))[:, None]
    np.testing.assert_allclose(sums.ravel(), clipped.sum(0), rtol=0, atol=1e-3 * CLIP)


def heads(w, x):
    """Columns 0 to 15 by one shape, 8 to 15 of them by another."""
    first, second = w.reshape(64, 4, 16)[:, 0], w.reshape(64, 8, 8)[:, 1]
    return jnp.sum(jnp.tanh(x @ first)) + jnp.sum(jnp.tanh(x @ second))


def layers(w, x):
    """A flat buffer that two layers of different shape share."""
    flat = w.ravel()
    h = jnp.tanh(x[:, :16] @ flat.reshape(32, 128)[:16])
    return jnp.sum(jnp.tanh(h[:, :32] @ flat.reshape(128, 32)[32:64]))


def many(w, x):
    """Ranges of rows that are disjoint by number and overlap in the buffer."""
    total = 0.0
    for rows, low, high in ((2, 0, 1), (32, 1, 16), (512, 16, 256)):
        view = w.reshape(rows, -1)[low:high]
        total += jnp.sum(x[:1, :1] * jnp.ones((1, high - low)) @ view)
    return total


@pytest.mark.parametrize("views", [heads, layers, many])
def test_views_that_overlap(views):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3, 3, 64)).astype(np.float32)
    w = jnp.asarray(generator.normal(size=(64, 64)) * 0.1, jnp.float32)
    compare(lambda p, example, key: views(p, example["x"]), w, {"x": jnp.asarray(x)})


def _shapes(size):
    """Factorings of `size` into one, two and three axes."""
    two = [(a, size // a) for a in range(2, size) if size % a == 0]
    three = [(a, *rest) for a, n in two for rest in two if rest[0] * rest[1] == n]
    return [(size,), *two, *three]


def _random_view(draw, size, plain):
    """(what was done, view): up to four operations on a vector."""
    done, now = [], np.zeros(size)
    for number in range(2 if plain else int(draw.integers(1, 5))):
        names = ["reshape", "slice", "flip", "transpose", "roll", "index", "double"]
        name = names[number] if plain else names[draw.integers(len(names))]
        axis = int(draw.integers(now.ndim))
        length = now.shape[axis]
        if name == "reshape":
            choices = _shapes(now.size)
            given = choices[draw.integers(len(choices))]
        elif name == "slice" and length > 1:
            start = int(draw.integers(length - 1))
            stop = int(draw.integers(start + 1, length + 1))
            given = (axis, slice(start, stop, int(draw.choice([1, 1, 1, 2]))))
        elif name == "index" and now.ndim > 1:
            given = (axis, int(draw.integers(length)))
        elif name == "transpose":
            given = tuple(int(d) for d in draw.permutation(now.ndim))
        elif name in ("flip", "roll", "double") and now.size <= 128:
            given = axis
        else:
            continue
        done.append((name, given))
        now = np.asarray(_view(jnp.asarray(now), done[-1:]))
    return done


def _view(w, done):
    for name, given in done:
        if name == "reshape":
            w = w.reshape(given)
        elif name in ("slice", "index"):
            axis, which = given
            w = w[(slice(None),) * axis + (which,)]
        elif name == "flip":
            w = jnp.flip(w, given)
        elif name == "transpose":
            w = jnp.transpose(w, given)
        elif name == "roll":
            w = jnp.roll(w, 1, given)
        else:
            w = jnp.concatenate([w, w], given)
    return w


def random_program(seed):
    """A loss that uses a vector of `SIZE` parameters through random views."""
    draw = np.random.default_rng(seed)
    uses = [
        (
            _random_view(draw, SIZE, plain=draw.random() < 0.7),
            ("dot", "times", "rows")[draw.integers(3)],
            int(draw.integers(1, 4)),
        )
        for _ in range(int(draw.integers(2, USES + 1)))
    ]

    def loss(w, example, key):
        del key
        total = 0.0
        for i, (done, how, steps) in enumerate(uses):
            x, ids = example["x"][i], example["ids"][i]
            view = _view(w, done)
            view = view.reshape(view.shape[0] if view.ndim > 1 else view.size, -1)
            if how == "dot":
                a = x[: steps * len(view)].reshape(steps, len(view))
                total += jnp.sum(jnp.tanh(a @ view))
            elif how == "times":
                total += jnp.sum(jnp.sin(view * x[: view.size].reshape(view.shape)))
            else:
                total += jnp.sum(jnp.tanh(view[ids[:steps] % len(view)]))
        return total

    return loss


def _try(seed):
    draw = np.random.default_rng([seed, 1])
    x = jnp.asarray(draw.normal(size=(3, USES, 1024)), jnp.float32)
    batch = {"x": x, "ids": jnp.asarray(draw.integers(0, 99, (3, USES, 4)))}
    w = jnp.asarray(draw.normal(size=SIZE), jnp.float32)
    compare(random_program(seed), w, batch)


@pytest.mark.parametrize("seed", range(16))
def test_random_views(seed):
    _try(seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("start", range(16, 416, 50))
def test_many_random_views(start):
    for seed in range(start, start + 50):
        _try(seed)
