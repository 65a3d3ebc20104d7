"""Clipping bias from arrays: per-example gradients by brute force, edge cases."""

import numpy as np
import pytest

from trustml.fairness import clipping_bias

CLIP = 1.0


def cosine(a, b):
    return a @ b / np.sqrt(a @ a * (b @ b))


def world(seed=0, n=300, blocks=6):
    """Gradients [n, 8]: group 1 pulls elsewhere, with three times the length."""
    rng = np.random.default_rng(seed)
    group = (rng.random(n) < 0.3).astype(int)
    ways = np.stack([np.eye(8)[0], np.eye(8)[1]])
    grads = (
        rng.normal(0, 0.3, (n, 8)) + ways[group] * np.where(group, 1.8, 0.6)[:, None]
    )
    norms = np.linalg.norm(grads, axis=1)
    clipped = grads * np.minimum(1, CLIP / norms)[:, None]
    sums = np.zeros((2, blocks, 2, 8))
    for i in range(n):
        sums[0, i % blocks, group[i]] += clipped[i]
        sums[1, i % blocks, group[i]] += grads[i]
    return grads, clipped, norms, group, sums


def test_figures_are_those_of_the_gradients():
    grads, clipped, norms, group, sums = world()
    kept = np.linalg.norm(clipped, axis=1)
    found = clipping_bias.measure(norms, kept, group, *sums, names="ab")
    for g, one in enumerate(found.groups):
        rows = group == g
        assert one.n == rows.sum()
        assert one.clipped_share.value == pytest.approx(np.mean(norms[rows] > CLIP))
        shorter = np.minimum(1, CLIP / norms[rows]) * norms[rows]
        assert one.kept_norm.value == pytest.approx(shorter.sum() / norms[rows].sum())
        assert one.mean_norm.value == pytest.approx(norms[rows].mean())
        whole = cosine(clipped[rows].sum(axis=0), grads[rows].sum(axis=0))
        assert one.cosine.value == pytest.approx(whole)
        for part in one[2:6]:
            assert part.lo < part.value < part.hi or part.hi == 1.0
    total = cosine(clipped.sum(axis=0), grads.sum(axis=0))
    assert found.cosine.value == pytest.approx(total)
    short, long = found.groups
    assert long.clipped_share.lo > short.clipped_share.hi
    assert long.kept_norm.hi < short.kept_norm.lo
    # Each group keeps its way; their sum turns towards the group that is clipped less.
    assert min(short.cosine.value, long.cosine.value) > total.item()


def test_the_jackknife_knows_the_spread():
    """Cosines of 200 samples of the same world vary as their intervals say."""
    values, halves = [], []
    for seed in range(200):
        _, clipped, norms, group, sums = world(seed, n=120, blocks=10)
        kept = np.linalg.norm(clipped, axis=1)
        one = clipping_bias.measure(norms, kept, group, *sums, names="ab").cosine
        values.append(one.value)
        halves.append((one.hi - one.lo) / 2 / 2.262)  # t of 9 degrees, 97.5%
    # Both spreads have a relative standard error of about 1 / sqrt(2 * 200) = 5%, and
    # the jackknife is biased upwards by some.
    assert np.mean(halves) == pytest.approx(np.std(values), rel=0.25)


def test_nothing_is_clipped():
    grads, _, norms, group, sums = world()
    found = clipping_bias.measure(norms, norms, group, sums[1], sums[1], names="ab")
    for one in found.groups:
        assert one.clipped_share.value == 0 and one.kept_norm.value == pytest.approx(1)
        assert one.cosine.value == pytest.approx(1)
        # That no other gradient is clipped either is more than these can tell.
        assert np.isnan([one.kept_norm.lo, one.kept_norm.hi, one.cosine.lo]).all()
        assert one.clipped_share.hi > 0.01
    assert found.cosine.value == pytest.approx(1) and np.isnan(found.cosine.hi)


def test_empty_groups_single_blocks_and_zero_gradients():
    _, clipped, norms, group, sums = world()
    kept = np.linalg.norm(clipped, axis=1)
    wide = np.concatenate([sums, np.zeros_like(sums[:, :, :1])], axis=2)
    found = clipping_bias.measure(norms, kept, group, *wide, names="abc")
    assert found.groups[2].n == 0 and found.groups[2].small
    assert np.isnan(found.groups[2].clipped_share.value)
    assert np.isnan(found.groups[2].cosine.value)
    once = sums.sum(axis=1, keepdims=True)
    one = clipping_bias.measure(norms, kept, group, *once, names="ab").groups[0]
    assert np.isnan(one.cosine.lo) and one.cosine.value < 1
    zero = np.zeros(40)
    still = clipping_bias.measure(
        zero,
        zero,
        zero.astype(int),
        np.zeros((2, 1, 3)),
        np.zeros((2, 1, 3)),
        names="a",
    ).groups[0]
    assert still.clipped_share.value == 0 and np.isnan(still.kept_norm.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kept": np.ones(3)}, "norms has shape .4,., kept .3,."),
        ({"clipped": np.zeros((1, 3, 2))}, "both must be .B, 2, P."),
        ({"kept": np.array([1, np.nan, 1, 1])}, "kept.1.='nan of 1' is not finite"),
        ({"group": np.array([0, 0, 1, 7])}, "group.3.=7 has no name among 2; give one"),
        ({"group": np.array([0, 0, 1, 0.5])}, "group='float64' are no integers 0..G-1"),
        (
            {"norms": np.array([1, -1.0, 1, 1])},
            "norms.1.=-1.0 must be >= 0, as lengths",
        ),
        ({"kept": np.array([1, 1, 1, -2.0])}, "kept.3.=-2.0 must be >= 0"),
        ({"clipped": np.full((1, 2, 2), np.nan)}, "clipped.0, 0, 0.=nan is not finite"),
        ({"unclipped": np.full((1, 2, 2), np.inf)}, "unclipped.0, 0, 0.=inf is not"),
        ({"norms": np.array([1, 1, np.inf, 1])}, "kept.2.='1 of inf' is not finite"),
    ],
)
def test_refusals(change, sentence):
    known = {
        "norms": np.ones(4),
        "kept": np.ones(4),
        "group": np.array([0, 0, 1, 1]),
        "clipped": np.ones((1, 2, 2)),
        "unclipped": np.ones((1, 2, 2)),
    }
    with pytest.raises(ValueError, match=sentence):
        clipping_bias.measure(**{**known, **change}, names="ab")
