"""The rewritten function against the convolution: values, gradients, none left."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from tests.federated import worlds
from trustml.federated import im2col
from trustml.federated.algorithms import averaging

# name -> shape of the image, shape of the kernel, options
FORMS = {
    "1d": ((2, 9, 3), (4, 3, 5), {"numbers": ("NWC", "WIO", "NWC")}),
    "1d valid, stride 2": (
        (2, 9, 3),
        (4, 3, 5),
        {"strides": (2,), "padding": "VALID", "numbers": ("NWC", "WIO", "NWC")},
    ),
    "2d same": ((2, 7, 6, 3), (3, 3, 3, 4), {}),
    "2d valid": ((2, 7, 6, 3), (2, 3, 3, 4), {"padding": "VALID"}),
    "strides": ((2, 7, 8, 3), (3, 3, 3, 4), {"strides": (2, 3)}),
    "one position": ((2, 4, 5, 3), (1, 1, 3, 4), {}),
    "uneven padding": ((2, 7, 6, 3), (3, 2, 3, 4), {"padding": ((2, 0), (1, 3))}),
    "dilated kernel": ((2, 9, 8, 3), (3, 2, 3, 4), {"rhs_dilation": (2, 3)}),
    "dilated image": (
        (2, 4, 5, 3),
        (3, 2, 3, 4),
        {"lhs_dilation": (2, 3), "padding": ((1, 2), (2, 1))},
    ),
    "groups": ((2, 7, 6, 6), (3, 3, 2, 9), {"feature_group_count": 3}),
    "depthwise, strides": (
        (2, 7, 6, 4),
        (3, 3, 1, 8),
        {"feature_group_count": 4, "strides": (2, 2)},
    ),
    "channels first": (
        (2, 3, 7, 6),
        (4, 3, 3, 2),
        {"numbers": ("NCHW", "OIHW", "NCHW")},
    ),
    "channels first, groups": (
        (2, 6, 7, 6),
        (4, 3, 3, 2),
        {"numbers": ("NCHW", "OIHW", "NCHW"), "feature_group_count": 2},
    ),
    "mixed layouts": (
        (7, 2, 6, 3),
        (3, 4, 3, 2),
        {"numbers": ("HNWC", "IOHW", "CHNW")},
    ),
    "batch groups": ((6, 7, 6, 2), (3, 3, 2, 6), {"batch_group_count": 3}),
    "batch groups, channels first": (
        (6, 2, 7, 6),
        (6, 2, 3, 3),
        {"numbers": ("NCHW", "OIHW", "NCHW"), "batch_group_count": 3},
    ),
}


def form(name):
    image, kernel, options = FORMS[name]
    options = dict(options)
    numbers = options.pop("numbers", ("NHWC", "HWIO", "NHWC"))
    strides = options.pop("strides", (1,) * (len(image) - 2))
    padding = options.pop("padding", "SAME")

    def convolve(x, k):
        return lax.conv_general_dilated(
            x, k, strides, padding, dimension_numbers=numbers, **options
        )

    return (convolve, *drawn(image, kernel))


def drawn(image, kernel):
    """Of a size that makes results of order one, where 1e-5 is much for a float32."""
    draw = np.random.default_rng(0).normal
    scale = np.sqrt(np.prod(kernel) / max(kernel))
    x, k = draw(size=image), draw(size=kernel) / scale
    return jnp.asarray(x, "float32"), jnp.asarray(k, "float32")


def pair():
    """An image and a kernel, channels last."""
    return drawn((2, 6, 5, 3), (3, 3, 3, 3))


def plain(x, k):
    return lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def left(fn, *args):
    """Convolutions in the program of `fn`."""
    return str(jax.make_jaxpr(fn)(*args)).count("conv_general_dilated[")


def squares(fn):
    return lambda *args: sum(jnp.sum(y**2) for y in jax.tree.leaves(fn(*args)))


def ways(fn):
    """The values of `fn`, and the gradients of a sum of functions of them."""
    return lambda *args: (fn(*args), jax.grad(squares(fn), (0, 1))(*args))


def assert_close(a, b):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5), a, b
    )


@pytest.mark.parametrize("name", FORMS)
def test_a_product_is_the_convolution(name):
    convolve, x, k = form(name)
    assert im2col.explain(convolve, x, k) == ()
    found = im2col.rewrite(convolve)
    assert_close(jax.jit(ways(found))(x, k), jax.jit(ways(convolve))(x, k))
    assert left(ways(convolve), x, k) == 4
    assert left(ways(found), x, k) == 0


@pytest.mark.parametrize("name", ["2d same", "groups", "1d", "channels first"])
def test_every_lane_its_kernel(name):
    convolve, x, k = form(name)
    xs = jnp.stack([x, -x, x / 2])
    ks = jnp.stack([k, k / 2, k[..., ::-1]])
    found, expected = (
        jax.vmap(ways(fn)) for fn in (im2col.rewrite(convolve), convolve)
    )
    assert_close(jax.jit(found)(xs, ks), jax.jit(expected)(xs, ks))
    assert left(found, xs, ks) == 0
    # Also the other way round: what is rewritten is already a batch of kernels, which
    # JAX makes a grouped convolution.
    after = im2col.rewrite(jax.vmap(convolve))
    assert_close(jax.jit(after)(xs, ks), jax.jit(jax.vmap(convolve))(xs, ks))
    assert left(after, xs, ks) == 0


BODIES = {
    "jit": lambda x, k: jax.jit(plain)(x, k),
    "remat": lambda x, k: jax.checkpoint(plain)(x, k),
    "scan": lambda x, k: lax.scan(lambda y, s: (plain(y, k) * s, y), x, jnp.ones(2)),
    "cond": lambda x, k: lax.cond(x[0, 0, 0, 0] > 0, plain, lambda x, k: x, x, k),
    "jit in scan in remat": lambda x, k: jax.checkpoint(
        lambda x: lax.scan(lambda y, _: (jax.jit(plain)(y, k), None), x, None, 2)[0]
    )(x),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_are_entered(name):
    fn, (x, k) = BODIES[name], pair()
    found = im2col.rewrite(fn)
    assert_close(jax.jit(ways(found))(x, k), jax.jit(ways(fn))(x, k))
    assert left(ways(found), x, k) == 0 and left(fn, x, k) > 0
    assert im2col.explain(fn, x, k) == ()


def test_a_while_loop_is_entered():
    x, k = pair()

    def fn(x, k):
        return lax.while_loop(
            lambda y: jnp.abs(y).sum() < 1e3, lambda y: plain(y, k) + y, x
        )

    found = im2col.rewrite(fn)
    assert_close(found(x, k), fn(x, k))
    assert left(found, x, k) == 0


def test_a_derivative_of_its_own_is_kept_and_named():
    x, k = pair()

    @jax.custom_vjp
    def forward(x, k):
        return plain(x, k)

    forward.defvjp(
        lambda x, k: (plain(x, k), (x, k)), lambda r, g: (r[0] * 0 + 7, r[1] * 0 + 5)
    )

    @jax.custom_jvp
    def straight(x, k):
        return plain(x, k)

    @straight.defjvp
    def _(primals, tangents):
        return plain(*primals), 3 * plain(tangents[0], primals[1])

    for fn, rule in ((forward, "custom_vjp_call"), (straight, "custom_jvp_call")):
        found = im2col.rewrite(fn)
        assert left(found, x, k) == 0
        assert_close(jax.jit(ways(found))(x, k), jax.jit(ways(fn))(x, k))
        (line,) = im2col.explain(fn, x, k)
        assert line.startswith(f"a {rule} with a convolution keeps its own derivative")


def test_padding_that_cuts():
    # The convolution of JAX 0.10 on a CPU reads beyond the image here: cut by hand.
    x, k = pair()

    def cut(x, k):
        return lax.conv_general_dilated(
            *(x, k, (1, 1), ((-1, 2), (0, -2))),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    whole = jnp.pad(x[:, 1:, :-2], ((0, 0), (0, 2), (0, 0), (0, 0)))
    valid = lax.conv_general_dilated(
        whole, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert_close(im2col.rewrite(cut)(x, k), valid)


def test_derivatives_of_others_are_not_lost():
    def fn(x, k):
        return jax.nn.relu(plain(x, k))  # relu'(0) = 0 is a rule of its own

    x, k = pair()
    zero = jnp.zeros_like(k)
    assert_close(jax.grad(squares(im2col.rewrite(fn)), 1)(x, zero), zero)


def test_a_kernel_like_the_image_stays():
    x, _ = pair()
    image, kernel = jnp.ones((1, 14, 14, 3)), jnp.ones((12, 12, 3, 2))
    found = im2col.rewrite(plain)
    assert left(found, image, kernel) == 1
    assert_close(found(image, kernel), plain(image, kernel))
    assert im2col.explain(plain, image, kernel) == (
        "the convolution of float32[1,14,14,3] with float32[12,12,3,2] stays: its 144 "
        "kernel positions are more than 128.",
    )


def test_results_keep_their_tree_and_types():
    def fn(tree, flag):
        y = plain(tree["x"].astype(jnp.bfloat16), tree["k"].astype(jnp.bfloat16))
        return {"y": y, "same": flag, "none": None, "count": 3}

    x, k = pair()
    tree = {"x": x, "k": k}
    found, expected = (f(tree, True) for f in (im2col.rewrite(fn), fn))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert found["y"].dtype == jnp.bfloat16
    # bfloat16 has 8 bits: sums of 27 products of order one differ by some 2^-8 of 5.
    np.testing.assert_allclose(
        *(np.asarray(t["y"], "float32") for t in (found, expected)), atol=0.08
    )


def test_a_network_in_the_lanes():
    def loss(params, example, key):
        del key
        x = jax.nn.relu(plain(example["x"][None], params["kernel"]))
        return -jax.nn.log_softmax(x.mean((0, 1, 2)) @ params["head"])[example["y"]]

    world = worlds.make(np.array([7, 0, 12, 1]))
    x, kernel = drawn((20, 4, 5, 2), (3, 3, 2, 4))
    params = {"kernel": kernel, "head": jnp.eye(4, 3)}
    world = world._replace(data={"x": np.asarray(x), "y": world.data["y"]})
    swept = [
        worlds.run(
            world,
            averaging.training(fn, optax.sgd(0.3)),
            averaging.Model(params, jnp.float32(1)),
            lanes=2,
        ).totals.message
        for fn in (loss, im2col.rewrite(loss))
    ]
    assert_close(*swept)
    shapes = params, {"x": x[0], "y": 0}, jax.random.key(0)
    assert im2col.convolutions(loss, *shapes) == 1
    assert im2col.convolutions(im2col.rewrite(loss), *shapes) == 0
