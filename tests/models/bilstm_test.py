"""The recurrence against a plain loop, the loss against its parts, Viterbi decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from trustml.models import bilstm, crf

D, H, T = 5, 4, 6
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _loop(x, kernel, recurrent, bias):
    """One direction over the tokens of `x`, in the order given."""
    h = c = np.zeros(H)
    states = []
    for token in x:
        i, f, g, o = np.split(token @ kernel + h @ recurrent + bias, 4)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.array(states).reshape(len(x), H), h


def test_states_equal_a_loop_without_padding():
    layer = bilstm.BiLstm(H)
    rng = np.random.default_rng(0)
    shapes = {
        "input_kernel": (D, 8 * H),
        "bias": (8 * H,),
        "forward_kernel": (H, 4 * H),
        "backward_kernel": (H, 4 * H),
    }
    p = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    x = rng.normal(size=(T, D)).astype(np.float32)
    apply = jit(lambda p, x, mask: layer.apply({"params": p}, x, mask))
    for length in (0, 1, 4, T):
        states, final = apply(p, x, jnp.arange(T) < length)
        ahead, ahead_final = _loop(
            x[:length],
            p["input_kernel"][:, : 4 * H],
            p["forward_kernel"],
            p["bias"][: 4 * H],
        )
        back, back_final = _loop(
            x[:length][::-1],
            p["input_kernel"][:, 4 * H :],
            p["backward_kernel"],
            p["bias"][4 * H :],
        )
        expected = np.concatenate([ahead, back[::-1]], axis=1)
        np.testing.assert_allclose(states[:length], expected, atol=1e-5)
        expected = np.concatenate([ahead_final, back_final])
        np.testing.assert_allclose(final, expected, atol=1e-5)


def test_forget_gates_start_open():
    shapes = bilstm.BiLstm(H).init(
        jax.random.key(0), jnp.zeros((2, D)), jnp.ones(2, bool)
    )
    bias = np.asarray(shapes["params"]["bias"]).reshape(2, 4, H)
    np.testing.assert_array_equal(bias[:, 1], 1.0)
    np.testing.assert_array_equal(bias[:, [0, 2, 3]], 0.0)


def test_loss_and_decoding_are_those_of_the_chain():
    """The loss is -log p(label) - w log p(slots) / n; decoding finds the best path."""
    sizes = {"width": 6, "hidden": 4}
    task = bilstm.task(20, 3, 4, slot_weight=0.7, **sizes)
    params = jit(task.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    params |= {
        "transitions": jnp.asarray(rng.normal(size=(4, 4)) * 3, jnp.float32),
        "start": jnp.asarray(rng.normal(size=4), jnp.float32),
        "end": jnp.asarray(rng.normal(size=4), jnp.float32),
    }
    example = {
        "tokens": jnp.array([3, 7, 9, 0, 0], jnp.int32),
        "length": jnp.int32(3),
        "label": jnp.int32(2),
        "slots": jnp.array([1, 3, 2, 0, 0], jnp.int32),
    }
    module = bilstm.Network(20, 3, 4, 6, 4, 1, 0.0)
    embeddings, n = task.embed(params, example), example["length"]

    @jit
    def run(params):
        label, chain, emissions = module.apply(
            {"params": params}, embeddings, example, method="scores"
        )
        joint = task.predict(params, example)
        loss = task.loss(params, example, jax.random.key(0))
        tags = bilstm.decoder(20, 3, 4, **sizes)(params, example)
        slots = crf.log_likelihood(chain, emissions, example["slots"], n)
        best = crf.viterbi(chain, emissions, n)
        marginals = crf.log_marginals(chain, emissions, n)
        sensitivity = jax.grad(
            lambda e: task.head(params, e, example | {"length": jnp.int32(0)}).slots[
                0, 0
            ]
        )(embeddings)
        return label, slots, joint, loss, tags, best, marginals, sensitivity

    label, slots, joint, loss, tags, best, marginals, sensitivity = run(params)
    np.testing.assert_allclose(loss, -label[2] - 0.7 * slots / 3, rtol=1e-5)
    np.testing.assert_array_equal(tags, best)
    np.testing.assert_allclose(joint.slots, marginals, atol=1e-6)
    np.testing.assert_allclose(joint.label, label, atol=1e-6)
    assert np.isfinite(sensitivity).all()
