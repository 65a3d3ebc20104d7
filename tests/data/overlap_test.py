"""Overlap against brute force, and examples worked by hand."""

import itertools

import numpy as np
import pytest

from trustml.data import overlap


def _longest(a, b):
    """By trying every subsequence of `a`."""
    for size in range(len(a), 0, -1):
        for some in itertools.combinations(a, size):
            rest = iter(b)
            if all(word in rest for word in some):
                return size
    return 0


def test_common_subsequence_equals_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = ("".join(rng.choice(list("abc"), rng.integers(0, 8))) for _ in range(2))
        assert overlap.common_subsequence(a, b) == _longest(a, b)


@pytest.mark.parametrize(
    ("said", "wanted", "exact", "f1"),
    [
        ("The Nile.", ["nile", "x"], 1, 1),
        ("the blue Nile", ["nile"], 0, 2 / 3),
        ("a b b", ["b b c"], 0, 2 * 2 / (2 + 3)),
        ("", ["nile"], 0, 0),
        ("the", ["an"], 1, 1),
        ("nile", [], 0, 0),
    ],
    ids=["case", "more", "bags", "nothing", "articles", "no_reference"],
)
def test_answers(said, wanted, exact, f1):
    assert overlap.exact_match(said, wanted) == exact
    assert overlap.token_f1(said, wanted) == pytest.approx(f1)


def test_rouge_takes_the_best_reference_and_keeps_order():
    assert overlap.rouge_l("a b c d", ["a c d e"]) == 0.75
    assert overlap.rouge_l("b a", ["a b"]) == 0.5
    assert overlap.rouge_l("a b", ["x", "A b"]) == 1
    assert overlap.rouge_l("Hi, you", ["hi you"]) == pytest.approx(4 / 5)
