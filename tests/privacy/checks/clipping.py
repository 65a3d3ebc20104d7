"""Clipped sums against a loop over examples, and what one example can do to them."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from tests.privacy.checks import common
from trustml.privacy import clipping, draws

POSITIONS, INNER, OUTER, ROWS = 2, 8, 8, 11


def product_loss(params, example, key):
    """A dense layer with bias on T positions and an embedding, linear in all of them.

    With v = y + 0.1, gradients are x^T v, sum_t v, and u scattered at the ids, whatever
    the parameters; that of the all-zeros example is not zero. `keep` of an example is
    drawn from its key.
    """
    hidden = example["x"] @ params["dense"]["w"] + params["dense"]["b"][None, :]
    looked_up = params["table"][example["ids"]]
    draw = jax.random.bernoulli(key, 0.5).astype(jnp.float32)
    keep = 1.0 - example["noisy"] * draw
    return keep * (
        jnp.sum(hidden * (example["y"] + 0.1)) + jnp.sum(looked_up * example["u"])
    )


def product_params():
    return {
        "dense": {"w": jnp.zeros((INNER, OUTER)), "b": jnp.zeros(OUTER)},
        "table": jnp.zeros((ROWS, 3)),
    }


def product_batch(generator, size):
    def normal(*shape):
        return generator.normal(size=(size, *shape)).astype(np.float32)

    return {
        "x": normal(POSITIONS, INNER),
        "y": normal(POSITIONS, OUTER),
        "u": normal(POSITIONS, 3),
        "ids": generator.integers(0, ROWS, (size, POSITIONS)).astype(np.int32),
        "noisy": np.zeros(size, np.float32),
    }


def by_loop(batch, mask, clip, rule="flat"):
    """The clipped sum, one example at a time, in float64."""
    total = [
        np.zeros((ROWS, 3)),
        np.zeros(OUTER),
        np.zeros((INNER, OUTER)),
    ]  # table, b, w
    for i in np.flatnonzero(mask):
        one = {name: np.asarray(x[i], np.float64) for name, x in batch.items()}
        if not all(np.all(np.isfinite(x)) for x in one.values()):
            continue
        table = np.zeros((ROWS, 3))
        np.add.at(table, batch["ids"][i], one["u"])
        v = one["y"] + 0.1
        grads = [table, v.sum(0), one["x"].T @ v]
        norms = [np.sum(g**2) for g in grads]
        if rule == "per_layer":  # the dense layer and the table, with equal shares
            dense = math.sqrt(norms[1] + norms[2])
            lengths = [math.sqrt(norms[0]), dense, dense]
            limit = clip / math.sqrt(2)
        else:
            lengths, limit = [math.sqrt(sum(norms))] * 3, clip
        for t, g, n in zip(total, grads, lengths, strict=True):
            by = limit / (n + 0.01) if rule == "automatic" else min(1.0, limit / n)
            t += by * g
    return {"dense": {"w": total[2], "b": total[1]}, "table": total[0]}


def _assert_equal(got, want, why):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        error = np.max(np.abs(x - y)) / max(np.max(np.abs(y)), 1e-30)
        assert error < 1e-4, f"{why}: off by {error:.1e}"


def clipped_sum(seed):
    """The clipper against a NumPy loop; masked rows hold junk, one row holds NaN."""
    generator = np.random.default_rng(seed)
    batch = product_batch(generator, 7)
    batch["x"][5] = np.nan
    mask = np.array([True, True, False, True, True, True, False])
    for rule in ("flat", "per_layer", "automatic"):
        clip = 12.0  # below most of the norms, above some of them
        clipper = clipping.clipped_grad(product_loss, l2_clip_norm=clip, rule=rule)
        got, info = jax.jit(clipper)(product_params(), batch, mask, jax.random.key(0))
        _assert_equal(got, by_loop(batch, mask, clip, rule), rule)
        assert np.asarray(info.nonfinite_per_example).tolist() == [False] * 5 + [
            True,
            False,
        ]
        assert not np.any(np.asarray(info.norms_per_example)[[2, 6]])


def released_sum(seed):
    """The loop without noise, on two devices: the clipped sum / a public constant.

    Draws are small, empty, and beyond the buffers, each after the other.
    """
    generator = np.random.default_rng(seed)
    columns = product_batch(generator, 40)
    t = common.trainer(
        product_loss, product_params(), columns, seed=seed, mean=3, slots=2,
        sample_rate=0.3, num_devices=2, clip=12.0,
    )  # fmt: skip
    state = t.state
    everyone = np.arange(40)
    drawn = [t.sampler.draw(0), everyone[:1], everyone[:0], everyone, everyone[5:9]]
    for ids in drawn:
        capacity, slots = t.sampler.capacity, t.sampler.physical_batch_size
        for physical in draws.lay_out(ids, capacity, slots, 2):
            state, released = t.release(state, physical)
        want = by_loop(columns, np.isin(everyone, ids), 12.0)
        want = jax.tree.map(lambda x: x / 3, want)
        if len(ids):
            _assert_equal(released, want, f"{len(ids)} examples")
        else:
            assert not any(np.any(x) for x in jax.tree.leaves(released))


def _distance(x, y):
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return math.sqrt(sum(float(np.sum((np.float64(a) - b) ** 2)) for a, b in pairs))


def _slots(batch, rows, size):
    """Rows of a batch in the first slots, padding after them; ids go along."""
    filled = np.zeros(size, np.int64)
    filled[: len(rows)] = rows
    mask = np.arange(size) < len(rows)
    return (
        {name: x[filled] for name, x in batch.items()},
        mask,
        filled.astype(np.uint32),
    )


def sensitivity(seed):
    """The triangle: D and D' differ in one adversarial member, the randomness does not.

    Members hold NaN, inf, 1e30, zeros, or a copy of another, and each has randomness of
    its own. Removing one lets the others move up a slot.
    """
    generator = np.random.default_rng(seed)
    size = 8
    batch = product_batch(generator, size)
    batch["noisy"] += 1.0
    for row, value in enumerate((np.nan, np.inf, 1e30, 0.0)):
        batch["x"][row] = value
    for x in batch.values():
        x[5] = x[4]
    # An opposite of row 6, so that replacing one by the other moves by 2 C.
    for name, x in batch.items():
        x[7] = {"y": -0.2 - x[6], "u": -x[6]}.get(name, x[6])
    batch["noisy"][6:] = 0.0
    for rule in ("flat", "per_layer"):
        clip = 0.3
        clipper = clipping.clipped_grad(product_loss, l2_clip_norm=clip, rule=rule)
        run = jax.jit(clipper.fn)

        def of(rows, run=run):
            slots = _slots(batch, rows, size)
            return run(product_params(), *slots[:2], jax.random.key(seed), slots[2])[0]

        whole = of(range(size))
        one = clipper.sensitivity(common.ADD) * (1 + 1e-4)
        for j in range(size):
            moved = _distance(whole, of([i for i in range(size) if i != j]))
            assert moved <= one, f"{rule}: member {j} moved the sum by {moved:.3g}"
        others = list(range(6))
        moved = _distance(of([*others, 6]), of([*others, 7]))
        most = clipper.sensitivity(common.REPLACE)
        assert moved <= most * (1 + 1e-4), f"{rule}: a replacement moved it {moved:.3g}"
        assert moved > 1.99 * clip, "the attack is meant to attain 2 C"


def gram_guard(seed):
    """Large activations whose cotangents cancel: Gram norms must not fall short."""
    generator = np.random.default_rng(seed)
    positions, features = 4, 32

    def loss(params, example, key):
        return jnp.sum((example["x"] @ params["w"]) * example["y"])

    params, clip = {"w": jnp.zeros((features, features))}, 1.0
    clipper = clipping.clipped_grad(loss, l2_clip_norm=clip)
    run = jax.jit(clipper.fn)
    for offset in (0.0, 300.0, 3000.0, 30000.0):
        x = generator.normal(size=(8, positions, features)) + offset
        y = generator.normal(size=(8, positions, features))
        y -= y.mean(axis=1, keepdims=True)
        batch = {"x": x.astype(np.float32), "y": y.astype(np.float32)}
        for i in range(8):
            sums, _ = run(params, batch, np.arange(8) == i, jax.random.key(0))
            # The sum's own rounding is not the clipper's: form it in float64.
            exact = batch["x"][i].astype(np.float64).T @ batch["y"][i]
            factor = np.vdot(sums["w"], exact) / np.vdot(exact, exact)
            length = factor * np.linalg.norm(exact)
            assert length <= clip * (1 + 1e-3), f"offset {offset}: length {length:.4g}"


def low_precision(seed):
    """Tokens of a bfloat16 model whose products cancel: still within the clip norm."""
    generator = np.random.default_rng(seed)

    def rounded(x):
        return np.array(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))

    def loss(params, example, key):
        hidden = example["x"].astype(jnp.bfloat16) @ params["w"].astype(jnp.bfloat16)
        return jnp.sum(hidden.astype(jnp.float32) * example["y"])

    # Three tokens whose products cancel exactly hide a fourth, short one: a, w - a and
    # w by 1, 1 and -1, on either side of the product.
    first = rounded(1 + generator.random(64))
    whole = rounded(first + rounded(0.1 + 0.2 * generator.random(64)))
    four = np.stack([first, whole - first, whole, rounded(np.full(64, 0.003))])
    signs = np.zeros((4, 64), np.float32)
    signs[(0, 1, 2, 3), (0, 0, 0, 1)] = (1.0, 1.0, -1.0, 1.0)
    params = {"w": jnp.zeros((64, 64))}
    for x, y in ((four, signs), (signs, four)):
        exact = np.linalg.norm(x.astype(np.float64).T @ y)
        for share in np.linspace(0.3, 0.95, 4):
            clip = float(share * exact)
            clipper = clipping.clipped_grad(loss, l2_clip_norm=clip)
            row, key = {"x": x[None], "y": y[None]}, jax.random.key(0)
            sums, _ = jax.jit(clipper)(params, row, np.ones(1, bool), key)
            length = float(jnp.linalg.norm(sums["w"])) / clip
            assert length <= 1 + 1e-4, f"one example reached {length:.3g} of its norm"
