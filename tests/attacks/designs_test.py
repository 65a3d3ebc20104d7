"""Designs: rows and columns add up, nobody is forgotten, coins are fair."""

import numpy as np
import pytest

from trustml.attacks import designs


@pytest.mark.parametrize("num_examples", [2, 10, 11, 501])
@pytest.mark.parametrize("num_models", [2, 6])
def test_every_example_is_in_exactly_half_of_paired_models(num_models, num_examples):
    design = designs.paired(num_models, num_examples, seed=1)
    assert np.all(design.member.sum(axis=0) == num_models // 2)
    sizes = design.member.sum(axis=1)
    assert sizes.min() == num_examples // 2 and sizes.max() == -(-num_examples // 2)
    partner = design.member[design.pair]
    np.testing.assert_array_equal(partner, ~design.member)
    np.testing.assert_array_equal(design.pair[design.pair], np.arange(num_models))
    assert np.all(design.pair != np.arange(num_models))


def rows(design):
    return [set(row[row >= 0].tolist()) for row in design.index]


MADE = {
    "paired": lambda seed: designs.paired(4, 21, seed=seed),
    "independent": lambda seed: designs.independent(5, 21, seed=seed),
    "canary": lambda seed: designs.canary(5, 21, canaries=[3, 20, 7], seed=seed),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_the_index_says_what_member_says(make):
    design = make(0)
    assert design.name in designs.NAMES
    assert design.index.dtype == design.pair.dtype == np.int32
    for row, member, found in zip(
        design.index, design.member, rows(design), strict=True
    ):
        assert found == set(np.flatnonzero(member))
        used = row >= 0
        assert used.sum() == len(found)
        assert not np.any(used[1:] & ~used[:-1]), "-1 comes last"
    assert design.index.shape[1] == design.member.sum(axis=1).max()


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_the_digest_follows_the_seed(make):
    assert make(0).digest == make(0).digest != make(1).digest
    np.testing.assert_array_equal(make(2).member, make(2).member)


def test_the_digest_follows_the_pairs():
    design = designs.paired(2, 8, seed=0)
    alone = designs.of_members(design.member)
    assert alone.digest != design.digest and alone.pair.tolist() == [-1, -1]


def test_the_permutations_are_uniform():
    # 400 first halves: an example is in Bin(400, 1/2) of them, stddev 10, and two given
    # ones are in Bin(400, 1/2 * 9/19) together, stddev 8.5. 4.5 stddev is 7e-6
    # two-sided, over 20 + 190 figures 1.5e-3.
    design = designs.paired(800, 20, seed=0)
    first = design.member[::2]
    assert np.all(np.abs(first.sum(axis=0) - 200) < 45)
    together = (first.T.astype(int) @ first)[np.triu_indices(20, 1)]
    assert np.all(np.abs(together - 400 * 9 / 38) < 4.5 * np.sqrt(400 * 9 * 29) / 38)


def test_a_larger_design_goes_on_from_a_smaller_one():
    few, many = (designs.paired(m, 30, seed=3) for m in (4, 10))
    np.testing.assert_array_equal(many.member[:4], few.member)
    few, many = (designs.independent(m, 30, seed=3) for m in (2, 5))
    np.testing.assert_array_equal(many.member[:2], few.member)


def test_independent_coins_are_fair():
    design = designs.independent(100, 400, seed=0)
    # Bin(40000, 1/2) has stddev 100; rows Bin(400, 1/2) 10, columns Bin(100, 1/2) 5;
    # 4.5 stddev is 7e-6, over 501 figures 3e-3.
    assert abs(int(design.member.sum()) - 20000) < 450
    assert np.all(np.abs(design.member.sum(axis=1) - 200) < 45)
    assert np.all(np.abs(design.member.sum(axis=0) - 50) < 22.5)
    assert np.all(design.pair == -1)


def test_canaries_alone_have_coins():
    chosen = np.array([0, 5, 49])
    design = designs.canary(200, 50, canaries=chosen, seed=0)
    others = np.setdiff1d(np.arange(50), chosen)
    assert np.all(design.member[:, others])
    # Bin(200, 1/2): stddev 7.07; 4.5 of them.
    assert np.all(np.abs(design.member[:, chosen].sum(axis=0) - 100) < 32)


WRONG = {
    "odd": (lambda: designs.paired(3, 9, seed=0), "num_models=3 must be even; take 4"),
    "no models": (lambda: designs.paired(0, 9, seed=0), "num_models=0 must be >= 1"),
    "one example": (lambda: designs.independent(2, 1, seed=0), "num_examples=1 must"),
    "seed": (lambda: designs.paired(2, 9, seed=-1), "seed=-1 must be >= 0"),
    "far canary": (
        lambda: designs.canary(2, 9, canaries=[9], seed=0),
        r"canaries=9 is outside \[0, 9\)",
    ),
    "canary twice": (
        lambda: designs.canary(2, 9, canaries=[1, 1], seed=0),
        "names an example twice",
    ),
    "no canary": (lambda: designs.canary(2, 9, canaries=[], seed=0), "give int"),
    "nobody": (
        lambda: designs.of_members(np.array([[True, False], [False, False]])),
        "model=1 has no example",
    ),
    "no complement": (
        lambda: designs.of_members(np.ones((2, 3), bool), [1, 0]),
        r"pair\[0\]=1 is no complement of model 0",
    ),
    "pair of three": (
        lambda: designs.of_members(np.eye(3, dtype=bool), [1, 2, 0]),
        r"pair\[0\]=1 is no complement",
    ),
    "pair out of range": (
        lambda: designs.of_members(np.eye(2, dtype=bool), [1, 2]),
        r"must hold one model in \[-1, 2\)",
    ),
}


@pytest.mark.parametrize("make, sentence", WRONG.values(), ids=WRONG)
def test_what_is_no_design_gets_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
