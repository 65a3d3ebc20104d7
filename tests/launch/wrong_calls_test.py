"""The table of calls that the library refuses: one sentence each.

Each row is a name, the call, and words that its sentence must hold. What goes through
the command line is in `wrong_inputs_test.py`.
"""

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml import parallel, rng
from trustml.data import batches
from trustml.privacy import clipping, noise, plan, sampling

PARAMS = {"w": jnp.ones(3)}
BATCH = {"x": jnp.ones((4, 3))}
MASK = jnp.ones(4, bool)
RELATION = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE


def linear(params, example, key):
    return jnp.vdot(params["w"], example["x"])


def clip(
    loss=linear,
    params=PARAMS,
    batch=BATCH,
    mask=MASK,
    key=0,
    example_ids=None,
    **options,
):
    options = {"l2_clip_norm": 1.0} | options
    key = jax.random.key(key) if key is not None else None
    clipper = clipping.clipped_grad(loss, **options)
    return clipper(params, batch, mask, key, example_ids)


@jax.custom_batching.custom_vmap
def whole_batch(x):
    return x


@whole_batch.def_vmap
def _whole_batch_rule(size, batched, x):
    return x - jnp.mean(x, axis=0), batched[0]


def collective(params, example, key):
    inner = jax.vmap(lambda x: x - jax.lax.pmean(x, "i"), axis_name="i")
    return jax.lax.psum(linear(params, example, key), "i") + 0 * jnp.sum(
        inner(PARAMS["w"])
    )


def in_a_named_axis():
    over = jax.vmap(
        lambda batch: clip(collective, batch=batch)[0]["w"], axis_name="i", in_axes=0
    )
    return over({"x": jnp.ones((2, 4, 3))})


def poisson(**changes):
    options = {"physical_batch_size": 8, "seed": 0} | changes
    return sampling.poisson(options.pop("num_examples", 100), 10, **options)


def make_plan(clipper=None, sampler=None, **changes):
    clipper = clipper or clipping.clipped_grad(linear, l2_clip_norm=1.0)
    options = {"steps": 5, "delta": 1e-5, "relation": RELATION, "epsilon": 3.0}
    return plan.make(clipper, sampler or poisson(), **(options | changes))


CALLS = {
    "loss is a vector": (
        lambda: clip(lambda p, e, k: p["w"] * e["x"]),
        ("loss returns shape (3,)", "one scalar for ONE example", "drop the batch"),
    ),
    "loss with a batch axis": (
        lambda: clip(lambda p, e, k: e["x"][None] @ p["w"]),
        ("loss returns shape (1,)", "drop the batch axis"),
    ),
    "loss is an integer": (
        lambda: clip(lambda p, e, k: jnp.int32(3)),
        ("loss returns dtype int32", "return a float scalar"),
    ),
    "parameters are integers": (
        lambda: clip(params={"w": jnp.ones(3, jnp.int32)}),
        ("parameter 'w' has dtype int32", "leave it out"),
    ),
    "nothing is trained": (
        lambda: clip(trainable=("b",)),
        ("trainable=('b',)", "selects no parameter", "one of w"),
    ),
    "mask of numbers": (
        lambda: clip(mask=jnp.ones(4)),
        ("mask has shape (4,) and dtype float32", "give bool[B]"),
    ),
    "mask of two axes": (
        lambda: clip(mask=jnp.ones((2, 2), bool)),
        ("mask has shape (2, 2)", "give bool[B]"),
    ),
    "leaves of different lengths": (
        lambda: clip(batch=BATCH | {"y": jnp.ones(3)}),
        ("batch['y'] has shape (3,)", "mask has 4 rows", "leading axis [4, ...]"),
    ),
    "a leaf without a batch axis": (
        lambda: clip(batch=BATCH | {"y": jnp.float32(1)}),
        ("batch['y'] has shape ()", "leading axis"),
    ),
    "a batch that is one array": (
        lambda: clip(batch=jnp.ones((3, 3))),
        ("batch has shape (3, 3)", "mask has 4 rows"),
    ),
    "no parameters": (
        lambda: clip(params={}),
        ("params={} holds no array to train", "task's init"),
    ),
    "no key": (
        lambda: clip(key=None),
        ("key of type NoneType", "is not one typed JAX key", "random.key(seed)"),
    ),
    "a loss with auxiliary values": (
        lambda: clip(lambda p, e, k: (linear(p, e, k), e["x"])),
        ("loss returns a tuple of 2", "return the loss alone"),
    ),
    "a loss that returns a dict": (
        lambda: clip(lambda p, e, k: {"loss": linear(p, e, k)}),
        ("loss returns a dict of 1", "return the loss alone"),
    ),
    "a function among the parameters": (
        lambda: clip(params={"w": jnp.ones(3), "f": jnp.tanh}),
        ("parameter 'f'", "must be an array", "eqx.partition"),
    ),
    "texts in the batch": (
        lambda: clip(batch=BATCH | {"text": np.array(["a", "b", "c", "d"])}),
        ("batch['text'] has dtype <U1", "only numbers"),
    ),
    "example ids of 64 bits": (
        lambda: clip(example_ids=np.array([0, 1, 2, 2**40])),
        ("example_ids=1099511627776", "32 bits"),
    ),
    "too few example ids": (
        lambda: clip(example_ids=jnp.arange(3)),
        ("example_ids has shape (3,)", "one integer for each of the 4 rows"),
    ),
    "example ids that are no integers": (
        lambda: clip(example_ids=jnp.ones(4)),
        ("dtype float32", "one integer for each of the 4 rows"),
    ),
    "a clip norm whose square float32 cannot hold": (
        lambda: clip(l2_clip_norm=1e-25),
        ("l2_clip_norm=1e-25", "at least 1e-12", "rescale the loss"),
    ),
    "a collective in the loss": (
        in_a_named_axis,
        ("collective `psum", "mixes the examples", "use GroupNorm"),
    ),
    "custom_vmap in the loss": (
        lambda: clip(lambda p, e, k: linear(p, {"x": whole_batch(e["x"])}, k)),
        ("custom_vmap", "sees the whole batch", "without the custom"),
    ),
    "microbatch of 0": (lambda: clip(microbatch_size=0), ("microbatch_size=0", ">= 1")),
    "noise in bfloat16": (
        lambda: _noisy({"w": jnp.ones(3, jnp.bfloat16)}),
        ("bfloat16", "must be float32", "accumulate"),
    ),
    "noise of 0": (lambda: noise.gaussian(0.0), ("noise_stddev=0.0", "enabled=False")),
    "sample rate above 1": (
        lambda: poisson(sample_rate=1.5),
        ("sample_rate=1.5", "at most 1", "lower the batch size"),
    ),
    "more than the data": (
        lambda: poisson(num_examples=5),
        ("expected_batch_size=10", "at most the 5", "lower train.batch_size"),
    ),
    "shuffling claims amplification": (
        lambda: sampling.shuffled(100, 10, physical_batch_size=8, amplified=True),
        ("amplified=True", "no proof", "sampling.poisson"),
    ),
    "event of another relation": (
        lambda: make_plan(sampler=sampling.fixed_size(100, 10, physical_batch_size=8)),
        ("ADD_OR_REMOVE_ONE", "REPLACE_ONE", "change the relation"),
    ),
    "plan with both": (
        lambda: make_plan(noise_multiplier=1.0),
        ("noise_multiplier=1.0", "epsilon=3.0", "exactly one"),
    ),
    "beyond the plan": (
        lambda: make_plan(epsilon=None, noise_multiplier=1.0).epsilon(step=6),
        ("step=6", "at most 5", "longer plan"),
    ),
    "seed too long": (
        lambda: rng.root(2**128),
        ("must be below 2**128", "None for 128 bits"),
    ),
    "too many devices": (
        lambda: parallel.devices(99),
        ("train.num_devices=99", "at most", "lower it"),
    ),
    "rows for other devices": (
        lambda: parallel.shard({"x": jnp.ones((3, 2))}, parallel.devices(2)),
        ("['x'] has shape (3, 2)", "the 2 device(s)", "parallel.deal"),
    ),
    "index outside the data": (
        lambda: batches.gather({"x": np.ones(3)}, np.array([3]), np.array([True])),
        ("indices holds 3", "outside [0, 3)", "sample among"),
    ),
    "columns of different lengths": (
        lambda: batches.size({"x": np.ones(3), "y": np.ones(2)}),
        ("{'x': 3, 'y': 2}", "one row an example"),
    ),
}


def _noisy(sums):
    mechanism = noise.gaussian(1.0)
    return mechanism.update(sums, mechanism.init(rng.root(0)))


def test_the_table_is_long_enough():
    assert len(CALLS) >= 15


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls(name):
    call, words = CALLS[name]
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_batch_statistics_are_found_by_the_check():
    """Isolation is checked on real rows: batch normalisation inside a callback."""

    def loss(params, example, key):
        shape = jax.ShapeDtypeStruct((3,), jnp.float32)
        centred = jax.pure_callback(
            lambda x: x - x.mean(axis=0, keepdims=x.ndim > 1),
            shape,
            example["x"],
            vmap_method="broadcast_all",
        )
        return jnp.vdot(params["w"], jax.lax.stop_gradient(centred))

    clipper = clipping.clipped_grad(loss, l2_clip_norm=1.0)
    with pytest.raises(ValueError, match="hands the whole batch to the host; use"):
        clipper.check(PARAMS, BATCH)
