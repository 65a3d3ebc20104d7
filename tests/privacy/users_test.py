"""Users as the unit: bundles, the loss of one, clipped sums by a loop, and plans."""

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from trustml.data import batches
from trustml.privacy import clipping, plan, sampling, users

ADD = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
K, C = 4, 1.0


def data(lengths=(1, 3, 9, 4, 2), seed=0, names=None):
    """Examples of some users, rows in random order."""
    generator = np.random.default_rng(seed)
    names = np.arange(len(lengths)) if names is None else np.asarray(names)
    owner = generator.permutation(np.repeat(names, lengths))
    size = len(owner)
    return {
        "tokens": generator.integers(0, 7, (size, 3)),
        "x": generator.standard_normal((size, 5)).astype(np.float32),
        "label": generator.integers(0, 3, size),
    }, owner


def init(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "embedding": jax.random.normal(keys[0], (7, 5)),
        "w": jax.random.normal(keys[1], (5, 3)),
        "b": jax.random.normal(keys[2], (3,)),
    }


def loss_fn(params, example, key):
    del key
    hidden = jnp.tanh(params["embedding"][example["tokens"]].mean(0) + example["x"])
    return -jax.nn.log_softmax(hidden @ params["w"] + params["b"])[example["label"]]


gradient = jax.jit(jax.grad(loss_fn))


def gradients(params, columns):
    """Of each example, one by one; float64[N, number of parameters]."""
    found = []
    for i in range(batches.size(columns)):
        example = {name: jnp.asarray(x[i]) for name, x in columns.items()}
        leaves = jax.tree.leaves(gradient(params, example, jax.random.key(0)))
        found.append(np.concatenate([np.asarray(x, float).ravel() for x in leaves]))
    return np.stack(found)


def flat(sums):
    return np.concatenate([np.asarray(x, float).ravel() for x in jax.tree.leaves(sums)])


# --- bundles -----------------------------------------------------------------------


def bundle_of(grouped, user):
    """The examples of a user's bundle, in order."""
    (row,) = np.flatnonzero(grouped.ids == user)
    mask = grouped.columns[users.MASK][row]
    assert mask.tolist() == sorted(mask, reverse=True)
    for name, column in grouped.columns.items():
        assert not column[row][~mask].any(), name
    return {name: x[row][mask] for name, x in grouped.columns.items()}


@pytest.mark.parametrize("names", [None, ["eve", "bob", "ada", "dan", "cy"]])
def test_bundles_hold_each_users_examples_in_order(names):
    columns, owner = data(names=names)
    grouped = users.group(columns, owner, max_examples=K)
    assert list(grouped.ids) == sorted(set(owner.tolist()))
    assert batches.size(grouped.columns) == 5
    for number, user in enumerate(grouped.ids):
        rows = np.flatnonzero(owner == user)
        assert grouped.lengths[number] == len(rows)
        bundle = bundle_of(grouped, user)
        kept = [r for r in rows if (columns["x"][r] == bundle["x"]).all(-1).any()]
        assert len(kept) == len(bundle["x"]) == min(len(rows), K)
        for name, column in columns.items():
            np.testing.assert_array_equal(bundle[name], column[kept])
            assert bundle[name].dtype == column.dtype


def test_a_bundle_depends_on_its_user_alone():
    columns, owner = data()
    whole = users.group(columns, owner, max_examples=K)
    for gone in range(5):
        rest = np.flatnonzero(owner != gone)
        # The others' rows come in another order among users, not within one.
        rest = rest[np.argsort(-owner[rest], kind="stable")]
        part = {name: x[rest] for name, x in columns.items()}
        without = users.group(part, owner[rest], max_examples=K)
        assert gone not in without.ids and len(without.ids) == 4
        for user in without.ids:
            for name, x in bundle_of(without, user).items():
                np.testing.assert_array_equal(x, bundle_of(whole, user)[name])


def test_which_examples_are_kept_is_uniform_over_users_and_fixed_by_the_seed():
    # 3000 users with 5 examples, numbered; 2 are kept: 10 pairs.
    owner = np.repeat(np.arange(3000), 5)
    columns = {"number": np.tile(np.arange(5), 3000)}
    kept, again, other = (
        users.group(columns, owner, max_examples=2, seed=s).columns["number"]
        for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(kept, again)
    assert np.mean(np.any(kept != other, 1)) > 0.8
    assert np.all(kept[:, 0] < kept[:, 1])
    counts = np.bincount(5 * kept[:, 0] + kept[:, 1], minlength=25)
    counts = counts[counts > 0]
    assert len(counts) == 10 and stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    "change,sentence",
    [
        ({"max_examples": 0}, "max_examples=0 must be >= 1; 16 is usual"),
        ({"seed": -1}, "seed=-1 must be >= 0"),
        ({"user_ids": np.zeros(3, int)}, r"user_ids='int64\[3\]' must be .* 19 exam"),
        ({"user_ids": np.zeros(19)}, r"user_ids='float64\[19\]' must be integers or"),
        ({"columns": {users.MASK: np.zeros(19)}}, "columns='user_mask' is the name of"),
        ({"columns": {}, "user_ids": np.zeros(0, int)}, "columns=0 holds no example"),
    ],
)
def test_bad_arguments(change, sentence):
    columns, owner = data()
    given = {"columns": columns, "user_ids": owner, "max_examples": K} | change
    with pytest.raises(ValueError, match=sentence):
        users.group(given.pop("columns"), given.pop("user_ids"), **given)


def test_a_loss_asks_for_its_mask_and_reduction():
    with pytest.raises(ValueError, match="reduction='average' is not one of mean, sum"):
        users.loss(loss_fn, reduction="average")
    with pytest.raises(ValueError, match="columns=.'x'. have no 'user_mask'; take th"):
        users.loss(loss_fn)({}, {"x": jnp.zeros((2, 3))}, jax.random.key(0))


# --- the loss of a user ------------------------------------------------------------


@pytest.mark.parametrize("reduction", users.REDUCTIONS)
def test_the_loss_is_that_of_its_examples_whatever_the_padding_holds(reduction):
    def random_loss(params, example, key):
        # log(0) of a padding of zeros, and randomness of the example's own.
        return jnp.log(example["x"] @ params) + jax.random.normal(key)

    x = jnp.array([[1.0, 2.0], [3.0, 1.0], [jnp.nan, 0.0]])
    mask, key = jnp.array([True, True, False]), jax.random.key(3)
    params = jnp.array([0.5, 2.0])
    of_user = users.loss(random_loss, reduction=reduction)
    value_and_grad = jax.jit(jax.value_and_grad(of_user))
    found, grad = value_and_grad(params, {"x": x, users.MASK: mask}, key)
    keys = [jax.random.fold_in(key, i) for i in range(2)]
    total = sum(random_loss(params, {"x": x[i]}, keys[i]) for i in range(2))
    slope = sum(x[i] / (x[i] @ params) for i in range(2))
    share = 1 if reduction == "sum" else 2
    np.testing.assert_allclose(found, total / share, rtol=1e-6)
    np.testing.assert_allclose(grad, slope / share, rtol=1e-6)
    nobody = {"x": x[:2], users.MASK: jnp.zeros(2, bool)}
    found, grad = value_and_grad(params, nobody, key)
    assert found == 0 and not np.any(np.asarray(grad))


# --- clipped sums ------------------------------------------------------------------


@pytest.mark.parametrize(
    "method,reduction",
    [
        ("book_keeping", "mean"),
        ("ghost", "mean"),
        ("vmap", "mean"),
        ("book_keeping", "sum"),
    ],
)
def test_the_clipped_sum_is_that_of_a_loop_over_users(method, reduction):
    params, (columns, owner) = init(), data()
    grouped = users.group(columns, owner, max_examples=K)
    norm = {"mean": 1.0, "sum": 3.0}[reduction]
    clipper = users.clipped_grad(
        loss_fn, reduction=reduction, l2_clip_norm=norm, method=method
    )
    assert clipper.privacy_unit == "user" and clipper.sensitivity(ADD) == norm
    mask = jnp.array([True, True, True, False, True])
    batch = jax.tree.map(jnp.asarray, grouped.columns)
    sums, info = jax.jit(clipper)(params, batch, mask, jax.random.key(0))
    expected, norms = 0, []
    for number, user in enumerate(grouped.ids):
        grads = gradients(params, _without_mask(bundle_of(grouped, user)))
        grad = grads.sum(0) / (1 if reduction == "sum" else len(grads))
        norms.append(np.linalg.norm(grad) * float(mask[number]))
        if mask[number]:
            expected = expected + grad * min(1, norm / norms[-1])
    np.testing.assert_allclose(info.norms_per_example, norms, rtol=1e-5)
    assert 0 < np.sum(np.asarray(norms) > norm) < 4, "some are clipped and some are not"
    assert np.linalg.norm(flat(sums) - expected) <= 1e-5 * np.linalg.norm(expected)
    if (method, reduction) == ("book_keeping", "mean"):
        clipper.check(params, batch)
        one = jax.tree.map(lambda x: x[0], batch)
        assert clipper.explain(params, one).materialized == 0


def _without_mask(bundle):
    return {name: x for name, x in bundle.items() if name != users.MASK}


@pytest.mark.parametrize("reduction", users.REDUCTIONS)
def test_a_whole_user_moves_the_sum_by_at_most_the_clip_norm(reduction):
    clipper = users.clipped_grad(loss_fn, reduction=reduction, l2_clip_norm=0.1)
    run, params = jax.jit(clipper), init(1)

    def clipped_sum(columns, owner):
        grouped = users.group(columns, owner, max_examples=K)
        ids = jnp.asarray(grouped.ids)
        everyone = jnp.ones(len(ids), bool)
        batch = jax.tree.map(jnp.asarray, grouped.columns)
        return flat(run(params, batch, everyone, jax.random.key(0), ids)[0])

    for filling in (None, 0.0, 1e30, np.nan):
        columns, owner = data()
        if filling is not None:
            columns["x"][owner == 2] = filling
        rest = {name: x[owner != 2] for name, x in columns.items()}
        moved = clipped_sum(columns, owner) - clipped_sum(rest, owner[owner != 2])
        distance = np.linalg.norm(moved)
        assert distance <= 0.1 * (1 + 1e-4)
        # All are clipped here, so the bound is met.
        if filling is None or filling == 0.0:
            assert distance > 0.0999
        elif np.isnan(filling):
            assert distance == 0


def test_clipping_examples_does_not_bound_a_user():
    # What the unit is for: ten copies of one example under the example's clipper.
    params, (columns, _) = init(1), data((10,))
    columns = {name: np.repeat(x[:1], 10, 0) for name, x in columns.items()}
    by_example = clipping.clipped_grad(loss_fn, l2_clip_norm=0.1)
    everyone = jnp.ones(10, bool)
    batch = jax.tree.map(jnp.asarray, columns)
    sums, _ = jax.jit(by_example)(params, batch, everyone, jax.random.key(0))
    assert np.linalg.norm(flat(sums)) > 0.99


# --- plans and batches of users ----------------------------------------------------


def test_a_plan_counts_and_names_users():
    base = sampling.poisson(2000, 100, physical_batch_size=32, seed=4)
    sampler = users.sampler(base)
    clipper = users.clipped_grad(loss_fn, l2_clip_norm=C)
    options = {"steps": 10, "delta": 1e-4, "relation": ADD, "noise_multiplier": 2.0}
    made = plan.make(clipper, sampler, **options)
    assert (
        made.epsilon()
        == plan.make(
            clipping.clipped_grad(loss_fn, l2_clip_norm=C), base, **options
        ).epsilon()
    )
    text = made.explain()
    assert "differential privacy for each user, under ADD_OR_REMOVE_ONE" in text
    assert "expected batch size 100 users, a public constant" in text
    assert "computed from the number of users" in text
    again = sampler.reseed(7)
    assert again.privacy_unit == "user" and again.seed == 7
    for pair, unit in (
        ((clipper, base), "example"),
        ((_example_clipper(), sampler), "user"),
    ):
        sentence = f"sampler.privacy_unit='{unit}' does not fit.*join users.clipped_g"
        with pytest.raises(ValueError, match=sentence):
            plan.make(*pair, **options)


def _example_clipper():
    return clipping.clipped_grad(loss_fn, l2_clip_norm=C)


def test_microbatches_of_drawn_users_add_up_to_their_clipped_sum():
    params, (columns, owner) = init(), data(lengths=range(1, 31), seed=2)
    grouped = users.group(columns, owner, max_examples=K)
    base = sampling.poisson(30, 10, physical_batch_size=4, seed=1)
    sampler = users.sampler(base)
    clipper = users.clipped_grad(loss_fn, l2_clip_norm=C)
    run, key = jax.jit(clipper), jax.random.key(1)
    (physical,) = sampler.physical(0)
    batch = batches.gather(grouped.columns, physical.indices, physical.mask)
    assert batch["x"].shape == (sampler.capacity, 4, K, 5)
    total = 0
    for trip in range(physical.trips):
        rows = jax.tree.map(lambda x, i=trip: jnp.asarray(x[i]), batch)
        mask = jnp.asarray(physical.mask[trip])
        total = total + flat(run(params, rows, mask, key)[0])
    drawn = np.isin(np.arange(30), sampler.draw(0))
    whole = jax.tree.map(jnp.asarray, grouped.columns)
    expected = flat(run(params, whole, jnp.asarray(drawn), key)[0])
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-6)
