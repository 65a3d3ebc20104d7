"""Overlap of texts against brute force, and the pairing of a batch."""

import itertools

import numpy as np
import pytest

from trustml.attacks.gradient_leakage import overlap, rows


def _longest(a, b):
    """Length of the longest common subsequence, by trying all of them."""
    for n in range(min(len(a), len(b)), 0, -1):
        have = set(itertools.combinations(a, n))
        if have & set(itertools.combinations(b, n)):
            return n
    return 0


def test_against_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(100):
        a, b = (tuple(rng.integers(0, 4, rng.integers(1, 7)).tolist()) for _ in "ab")
        expected = 2 * _longest(a, b) / (len(a) + len(b))
        assert overlap.subsequence_f1(a, b) == pytest.approx(expected)
        for n in (1, 2):
            have, want = ([t[i : i + n] for i in range(len(t) - n + 1)] for t in (a, b))
            common = sum(min(have.count(g), want.count(g)) for g in set(want))
            total = len(have) + len(want)
            expected = 2 * common / total if total else float(a == b)
            assert overlap.ngram_f1(a, b, n) == pytest.approx(expected)
        assert overlap.token_recall(a, b) == pytest.approx(
            sum(min(a.count(t), b.count(t)) for t in set(b)) / len(b)
        )


def test_texts_are_paired_and_rows_stand_beside():
    """Order counts in ROUGE-2 and L, not in recall; the batch may be permuted."""
    true = [[1, 2, 3], [7, 8]]
    claim = rows.Claim(np.array([3, 1, 2, 8, 7]), np.arange(5.0)[::-1])
    both = overlap.compare([[7, 8], [1, 3, 2]], true, claim)
    assert both.attack.token_recall == 1.0
    assert both.attack.exact == 0.5
    assert both.attack.rouge_2 == pytest.approx((1.0 + 0.0) / 2)
    assert both.attack.rouge_l == pytest.approx((1.0 + 2 / 3) / 2)
    assert both.rows.exact == 0.0
    assert both.rows.token_recall == pytest.approx((1.0 + 0.0) / 2)


def test_what_does_not_fit_is_refused():
    claim = rows.Claim(np.array([1]), np.ones(1))
    with pytest.raises(ValueError, match="found=1 texts do not match the 2 of true"):
        overlap.compare([[1]], [[1], [2]], claim)
    with pytest.raises(ValueError, match=r"true=\[0\] must be lengths >= 1"):
        overlap.compare([[1]], [[]], claim)
