"""Figures of planted secrets against what is counted by hand."""

import json

import numpy as np
import pytest

from trustml import report
from trustml.attacks.extraction import canary
from trustml.experiments import canary_page, exposures, planted
from trustml.models import tagging

SEEDS, COPIES, LETTERS, WIDTH = 6, (3, 0), 3, 2


def make_planted(sampled=0, ends=0):
    pattern = canary.pattern([9, -1, -1], [1, 2, 3], max_length=3)
    make = np.random.default_rng(0)
    secrets, decoys = [], []
    for _ in range(SEEDS):
        own, other = make.choice(9, 2, replace=False)
        for number, group in ((own, secrets), (other, decoys)):
            code = np.array(divmod(int(number), 3), np.int32)
            group.append(canary.Secret(code, 0, np.zeros(3, np.int32)))
    codes = canary.all_codes(pattern)
    if sampled:
        rows = [
            [s.code, d.code, *make.choice(codes, sampled), *codes]
            for s, d in zip(secrets, decoys, strict=True)
        ]
        codes = np.array(rows, np.int32)
    return planted.Planted(
        pattern, tuple(secrets), tuple(decoys), {}, codes, sampled, np.zeros(6, int), ()
    )


def measure(plan, losses, guesses=None, **changes):
    models = SEEDS * len(COPIES)
    options = {
        "correct": np.ones((models, 4), bool),
        "f1": [0.5] * models,
        "guesses": guesses or {},
        "exhaustive": not plan.sampled,
    }
    return exposures.measure(
        "undefended", plan, COPIES, losses=losses, **options | changes
    )


def test_inserted_and_control_are_told_apart_by_their_place():
    plan = make_planted()
    losses = np.tile(np.arange(9.0), (12, 1))
    for s, secret in enumerate(plan.secrets):
        losses[2 * s, canary.index(plan.pattern, secret.code)] = -1.0  # with copies
    correct = np.zeros((12, 4), bool)
    correct[::2] = True
    found = measure(plan, losses, correct=correct, f1=[0.9, 0.1] * 6)
    inserted, control = found.rows
    assert (inserted.copies, control.copies) == (3, 0) and control.summary is None
    assert inserted.accuracy.value == 1 and control.accuracy.value == 0
    assert inserted.slot_f1.value == pytest.approx(0.9)
    assert inserted.bits == pytest.approx([np.log2(9)] * 6)
    ranks = [1 + canary.index(plan.pattern, s.code) for s in plan.secrets]
    assert control.bits == pytest.approx(np.log2(9) - np.log2(ranks))
    gained = np.median(np.log2(ranks))
    assert inserted.summary.delta_median == pytest.approx(gained)
    best = inserted.guesses["exhaustive"]
    assert best.whole == 6 and best.hamming.value == 0 and best.share.hi == 1
    # Exact interval of 6 of 6: lo = 0.025^(1/6).
    assert best.share.lo == pytest.approx(0.025 ** (1 / 6))
    first = np.array([secret.code for secret in plan.secrets]) == 0
    assert control.guesses["exhaustive"].words.value == pytest.approx(first.mean())
    assert np.isnan(inserted.gaps).all(), "nine codes are too few to extrapolate from"


def test_guesses_of_searches_belong_to_their_models():
    plan = make_planted()
    losses = np.tile(np.arange(9.0), (12, 1))
    codes = np.repeat([secret.code for secret in plan.secrets], 2, axis=0)
    codes[1::2] = (codes[1::2] + 1) % 3  # without the secret every word is wrong
    found = measure(plan, losses, {"relaxed": codes})
    assert found.rows[0].guesses["relaxed"].whole == 6
    assert found.rows[1].guesses["relaxed"].hamming.value == WIDTH


def test_long_codes_are_extrapolated_and_their_ends_ranked():
    plan = make_planted(sampled=1000)
    losses = np.random.default_rng(1).normal(size=(12, 2 + 1000 + 9))
    losses[::2, 0] = -9.0
    for s, secret in enumerate(plan.secrets):
        losses[2 * s, 1002 + canary.index(plan.pattern, secret.code)] = -9.0
    found = measure(plan, losses)
    inserted, control = found.rows
    assert found.estimated and inserted.bits == pytest.approx([np.log2(9)] * 6)
    assert inserted.subspace_bits == pytest.approx([np.log2(9)] * 6)
    assert "exhaustive" not in inserted.guesses
    # The secret below all 1,000 codes: p = 1/1001 for each seed.
    assert inserted.summary.p_value < 1e-9 and control.bits != inserted.bits
    assert inserted.summary.ceiling == pytest.approx(np.log2(9))


def test_gap_is_that_of_the_two_exposures():
    make = np.random.default_rng(0)
    pattern = canary.pattern([9, *[-1] * 7], [1, 2, 3], max_length=8)
    code = np.zeros(7, np.int32)
    secret = canary.Secret(code, 0, np.zeros(8, np.int32))
    decoy = secret._replace(code=code + 1)
    plan = make_planted()._replace(
        pattern=pattern,
        secrets=(secret,),
        decoys=(decoy,),
        codes=canary.all_codes(pattern),
    )
    losses = make.normal(size=(2, 3**7))
    losses[:, 0] = -1.5
    found = exposures.measure(
        "x",
        plan,
        (1, 0),
        correct=np.ones((2, 3), bool),
        f1=[1, 1],
        losses=losses,
        guesses={},
        exhaustive=True,
    )
    # Exact: the share of normals below -1.5 is 0.0668, 3.90 bits; the fit to 1,000
    # draws knows log2 of it to about sqrt(0.93/(1000 * 0.067))/ln 2 = 0.17 bits.
    assert abs(found.rows[0].bits[0] - 3.90) < 0.6
    assert 0 < abs(found.rows[0].gaps[0]) < 0.6


def test_f1_is_that_of_all_spans():
    names = ("O", "B-x", "I-x")
    test = {"slots": np.array([[1, 2, 0], [0, 1, 0]]), "length": np.array([3, 2])}
    tags = np.array([[1, 2, 0], [1, 1, 1]])
    # Two spans are right of three found and two wanted.
    assert exposures.f1(tags, test, names) == pytest.approx(2 * 2 / (3 + 2))
    spans = tagging.decode(tags, test["length"], names)
    assert spans[1] == ["B-x", "B-x"]


def test_numbers_go_to_json():
    found = measure(make_planted(), np.random.default_rng(0).normal(size=(12, 9)))
    plain = json.loads(report.to_json({"one": exposures.as_dict(found)}))["one"]
    assert plain["rows"][0]["guesses"]["exhaustive"]["words"]["value"] >= 0
    assert plain["rows"][1]["summary"] is None and plain["seeds"] == SEEDS


@pytest.mark.parametrize(
    ("seeds", "high", "said"),
    [
        (1, np.inf, "None was shown to bring"),
        (16, 1.4, "None was shown to bring"),
        (16, 0.9, "Within 1 bit of the control: "),
    ],
    ids=["one-seed", "wide", "shown"],
)
def test_a_defence_holds_by_its_interval_and_not_by_its_median(seeds, high, said):
    plan = make_planted()
    plain = measure(plan, np.random.default_rng(0).normal(size=(12, 9)))
    rows = [
        row
        if row.summary is None
        else row._replace(
            summary=row.summary._replace(
                delta_median=0.2, delta_lo=-high, delta_hi=high
            )
        )
        for row in plain.rows
    ]
    defended = plain._replace(name="dropout", seeds=seeds, rows=rows)
    (card,) = [
        card
        for card in canary_page.cards(plan, [plain, defended])
        if card.question.startswith("Which defence holds")
    ]
    assert card.headline.startswith(said)
    few = any("too few seeds to say that it holds" in point for point in card.points)
    assert few == (high > 1)
    assert any("Of one seed only" in point for point in card.points) == (seeds == 1)
