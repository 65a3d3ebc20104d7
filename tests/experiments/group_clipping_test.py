"""Clipping bias of a run against gradients that are taken one example at a time."""

import jax
import numpy as np
import pytest

from tests.experiments import fairness_test as made
from trustml.experiments import build, group_clipping, loop
from trustml.fairness import clipping_bias
from trustml.privacy import clipping

CLIP = 1.0


def config_of(**changes):
    private = {"privacy__enabled": True, "privacy__epsilon": 8.0}
    return made.config_of(**{**private, "privacy__l2_clip_norm": CLIP, **changes})


def trained_of(config, data):
    """A model of large random weights, sure of some labels, and its clipper."""
    task = build.task(config, data)
    clipper = build.clipper(config, build.loss(config, data, task))
    params = jax.tree.map(
        lambda x: 0.7 * jax.random.normal(jax.random.key(3), x.shape),
        task.init(jax.random.key(3)),
    )
    return task, loop.Trained(params, None, clipper, [], None)


def grouping(data):
    of = {part: data.groups[part]["kind"] for part in ("train", "valid", "test")}
    return group_clipping.Grouping("kind", ("a", "b"), of)


def gradients(task, params, data):
    """float64[n, P], one jax.grad an example, and the sizes of the leaves."""
    grad = jax.jit(jax.grad(task.loss))
    rows = []
    for i in range(len(data.train["label"])):
        example = {name: column[i] for name, column in data.train.items()}
        leaves = jax.tree.leaves(grad(params, example, jax.random.key(0)))
        rows.append(np.concatenate([np.ravel(x) for x in leaves]))
    return np.array(rows, float), [x.size for x in leaves]


def cosine(a, b):
    return a @ b / np.sqrt(a @ a * (b @ b))


@pytest.mark.parametrize("rule", ["flat", "per_layer", "automatic"])
def test_figures_are_those_of_gradients_one_by_one(rule):
    data = made.world(n=90)
    data = data._replace(groups={**data.groups, "train": dict(data.groups["train"])})
    kinds = data.groups["train"]["kind"]
    kinds[:5] = -1  # nobody's, which is in no group
    config = config_of(privacy__rule=rule)
    task, trained = trained_of(config, data)
    found = group_clipping.of_run(config, data, task, trained, (grouping(data),))
    bias = found["kind"]
    grads, sizes = gradients(task, trained.params, data)
    paths = trained.clipper.groups(trained.params)
    clipped, kept = np.zeros_like(grads), np.zeros(len(grads))
    ends = np.cumsum([0, *sizes])
    for number, share in enumerate(paths.shares):
        leaves = [leaf for leaf, of in enumerate(paths.index) if of == number]
        columns = np.concatenate([np.arange(ends[k], ends[k + 1]) for k in leaves])
        norms = np.linalg.norm(grads[:, columns], axis=1)
        limit = CLIP * share
        factor = limit / (norms + 0.01) if rule == "automatic" else None
        if factor is None:
            factor = np.minimum(1, limit / np.maximum(norms, 1e-30))
        clipped[:, columns] = grads[:, columns] * factor[:, None]
        kept += (norms * factor) ** 2
    kept, norms = np.sqrt(kept), np.linalg.norm(grads, axis=1)
    shorter = np.mean(kept < 0.99 * norms)
    assert 0.1 < shorter < 0.9 or rule == "per_layer", f"{CLIP} is no test of {rule}"
    for g, one in enumerate(bias.groups):
        rows = kinds == g
        assert one.n == rows.sum()
        share = np.mean(kept[rows] < norms[rows] * (1 - 1e-5))
        assert one.clipped_share.value == pytest.approx(share)
        assert one.mean_norm.value == pytest.approx(norms[rows].mean(), rel=1e-4)
        ratio = kept[rows].sum() / norms[rows].sum()
        assert one.kept_norm.value == pytest.approx(ratio, rel=1e-4)
        whole = cosine(clipped[rows].sum(axis=0), grads[rows].sum(axis=0))
        assert one.cosine.value == pytest.approx(whole, abs=1e-4)
        assert np.isfinite(one.cosine.lo)
    some = kinds >= 0
    total = cosine(clipped[some].sum(axis=0), grads[some].sum(axis=0))
    assert bias.cosine.value == pytest.approx(total, abs=1e-4)


def test_what_is_not_finite_counts_nowhere():
    data = made.world(n=60)
    config = config_of()
    task, trained = trained_of(config, data)

    def broken(params, example, key):
        bad = jax.numpy.where(example["tokens"][0] == -1, jax.numpy.nan, 1.0)
        return task.loss(params, example, key) * bad

    tokens = data.train["tokens"].copy()
    tokens[:4, 0] = -1
    data = data._replace(train={**data.train, "tokens": tokens})
    clipper = clipping.clipped_grad(broken, l2_clip_norm=CLIP)
    found = group_clipping.of_run(
        config, data, task, trained._replace(clipper=clipper), (grouping(data),)
    )
    assert isinstance(found["kind"], clipping_bias.ClippingBias)
    assert sum(one.n for one in found["kind"].groups) == 56
    assert np.isfinite(found["kind"].cosine.value)


def test_reasons_for_none():
    data = made.world(n=60)
    config = config_of()
    task, trained = trained_of(config, data)
    nobody = grouping(data)
    nobody.of["train"] = np.full(60, -1)
    said = group_clipping.of_run(config, data, task, trained, (nobody,))
    assert said == "groups of training examples are not known"
    moving = config_of(privacy__rule="quantile")
    task, trained = trained_of(moving, data)
    said = group_clipping.of_run(moving, data, task, trained, (grouping(data),))
    assert said == "the clip norm moved while training"
