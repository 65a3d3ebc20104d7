"""Bias areas against scikit-learn, pair counting and published definitions."""

import functools
import gzip
import json

import jax
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from trustml.fairness import ranking, ranking_table, resampling

COMMUNITIES = (
    "African Islam Jewish Homosexual Women Refugee Arab Caucasian Asian Hispanic"
).split()

FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=FAST)


def _pairs(scores, positive, negative):
    """P[s+ > s-] + P[=]/2 by looking at every pair of two sets of rows."""
    a, b = scores[positive][:, None], scores[negative][None, :]
    return np.mean((a > b) + 0.5 * (a == b)) if a.size and b.size else np.nan


def _oracle(scores, y, member, targeted=False):
    aside = member.any(1) if targeted else np.ones(len(y), bool)
    out = {name: [] for name in ("subgroup", "bpsn", "bnsp", "neg", "pos")}
    for m in member.T:
        o = ~m & aside
        out["subgroup"].append(_pairs(scores, m & y, m & ~y))
        out["bpsn"].append(_pairs(scores, o & y, m & ~y))
        out["bnsp"].append(_pairs(scores, m & y, o & ~y))
        out["neg"].append(0.5 - _pairs(scores, o & ~y, m & ~y))
        out["pos"].append(0.5 - _pairs(scores, o & y, m & y))
    return {k: np.array(v) for k, v in out.items()}


def _rows(seed=0, n=700, identities=4, levels=40):
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    member = rng.random((n, identities)) < np.linspace(0.05, 0.6, identities)
    scores = np.round(rng.normal(size=n) + y + 0.5 * member[:, 0], 2)
    scores = np.round(scores * levels / 4) / levels
    return scores.astype(np.float32), y, member


_bias = {
    b: jit(lambda *a, b=b, **k: ranking.auc_bias(*a, background=b, **k))
    for b in ranking.BACKGROUNDS
}


@pytest.mark.parametrize("background", ranking.BACKGROUNDS)
def test_every_entry_equals_counting_pairs(background):
    scores, y, member = _rows()
    assert len(np.unique(scores)) < 100  # many ties
    found = _bias[background](scores, y, member)
    want = _oracle(scores, y, member, background == "targeted")
    names = dict(
        zip(
            want,
            ("subgroup", "bpsn", "bnsp", "aeg_negative", "aeg_positive"),
            strict=True,
        )
    )
    for short, name in names.items():
        np.testing.assert_allclose(getattr(found, name), want[short], atol=1e-6)
    np.testing.assert_allclose(found.overall, _pairs(scores, y, ~y), atol=1e-6)
    np.testing.assert_allclose(
        found.power_means,
        [np.mean(want[a] ** -5.0) ** -0.2 for a in ranking_table.AREAS],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        found.final, (found.overall + found.power_means.sum()) / 4, atol=1e-6
    )
    np.testing.assert_array_equal(found.members[:, 1], (member & y[:, None]).sum(0))


def test_gaps_have_the_sign_of_members_shift():
    scores, y, member = _rows(n=4000)
    found = _bias["all"](scores + 5.0 * member[:, 1], y, member)
    assert found.aeg_negative[1] > 0.4 and found.aeg_positive[1] > 0.4
    assert found.bpsn[1] < 0.1  # members' negatives above all others' positives
    # The same from SciPy: U of the first sample counts pairs in which it is larger.
    o, m = ~member[:, 0] & ~y, member[:, 0] & ~y
    u = stats.mannwhitneyu(scores[o], scores[m]).statistic / (o.sum() * m.sum())
    want = _bias["all"](scores, y, member).aeg_negative[0]
    np.testing.assert_allclose(want, 0.5 - u, atol=1e-6)


@pytest.mark.parametrize("rows", [76_564, 1_000])
def test_float32_is_good_to_1e6_with_and_without_ties(rows):
    rng = np.random.default_rng(1)
    y = rng.random(rows) < 0.08
    member = rng.random((rows, 3)) < np.array([0.5, 0.97, 0.02])
    for decimals in (6, 1):
        scores = np.round(rng.normal(size=rows) + y, decimals).astype(np.float32)
        found = _bias["all"](scores, y, member)
        want = metrics.roc_auc_score(y, scores)
        np.testing.assert_allclose(found.overall, want, atol=1e-6)
        for i, m in enumerate(member.T):
            for area, rows_of in (
                ("subgroup", m),
                ("bpsn", np.where(y, ~m, m)),
                ("bnsp", np.where(y, m, ~m)),
            ):
                want = metrics.roc_auc_score(y[rows_of], scores[rows_of])
                np.testing.assert_allclose(getattr(found, area)[i], want, atol=1e-6)


def test_weights_are_repetitions():
    scores, y, _ = _rows(n=300)
    weights = np.random.default_rng(2).integers(0, 4, (6, 300))
    found = jit(lambda s, y, w: ranking.auc(s, y, weights=w))(scores, y, weights)
    for w, area in zip(weights, found, strict=True):
        want = metrics.roc_auc_score(np.repeat(y, w), np.repeat(scores, w))
        np.testing.assert_allclose(area, want, atol=1e-6)
    want = metrics.roc_auc_score(y, scores, sample_weight=weights[0] * 0.37)
    heavy = (weights * 0.37).astype(np.float32)
    found = jit(lambda s, y, w: ranking.auc(s, y, weights=w))(scores, y, heavy)
    np.testing.assert_allclose(found[0], want, atol=1e-6)


def test_masked_rows_contribute_nothing():
    scores, y, member = _rows()
    rng = np.random.default_rng(3)
    extra = 50
    place = rng.permutation(len(y) + extra)
    mask = (place < len(y))[: len(y) + extra]
    wide = np.full(mask.size, np.nan, np.float32)
    wide[np.flatnonzero(~mask)[:25]] = np.inf
    labels, members = rng.random(mask.size) < 0.5, rng.random((mask.size, 4)) < 0.5
    weights = np.full(mask.size, np.nan, np.float32)
    wide[mask], labels[mask], members[mask], weights[mask] = scores, y, member, 1.0
    want = _bias["targeted"](scores, y, member)
    found = _bias["targeted"](wide, labels, members, mask=mask, weights=weights)
    for name, a, b in zip(want._fields, want, found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(
        jit(ranking.auc)(wide, labels, mask=mask), want.overall, atol=1e-6
    )


def test_undefined_is_nan_with_a_reason_and_never_zero():
    scores, y, member = _rows(identities=3)
    member[:, 1] &= y  # no negatives
    member[:, 2] = False  # nobody
    point = _bias["all"](scores, y, member)
    np.testing.assert_array_equal(np.isnan(point.subgroup), [False, True, True])
    np.testing.assert_array_equal(np.isnan(point.bnsp), [False, False, True])
    np.testing.assert_array_equal(point.left_out, [2, 2, 1])
    np.testing.assert_allclose(point.power_means[0], point.subgroup[0], atol=1e-6)
    assert np.isfinite(point.final)
    draws = jit(
        lambda key: ranking.bootstrap(
            key, scores, y, member, replicates=20, scheme="bayesian"
        )
    )(jax.random.key(0))
    table = ranking_table.summarise(point, draws, ("a", "b", "c"))
    assert table.identities[1].bpsn.reason == "no negatives among members"
    assert table.identities[1].aeg_positive.reason == ""
    assert table.identities[2].bnsp.reason == "no positives among members"
    assert table.identities[2].bpsn.n_undefined == 20
    assert table.left_out == {"subgroup": 2, "bpsn": 2, "bnsp": 1}
    assert table.identities[2].flags[0] == "0 rows, fewer than 30"
    assert table.identities[1].against.reason == "no negatives among members"
    scores[3] = np.nan
    broken = _bias["all"](scores, y, member)
    assert np.isnan(broken.overall) and broken.n_nan == 1
    assert "NaN" in ranking_table.summarise(broken, draws, "abc").overall.reason


def test_both_zeros_tie_and_whole_numbers_and_infinities_have_an_order():
    y = np.array([0, 1, 1, 0], bool)
    area = jit(ranking.auc)
    assert area(np.array([0.0, -0.0, 1.0, -np.inf], np.float32), y) == 0.875
    assert area(np.array([-1e-30, -2.0, np.inf, -np.inf], np.float32), y) == 0.75
    assert area(np.array([2**24, 2**24 + 1, 5, 5], np.int32), y) == 0.625
    tiny = np.array([1e-40, 2e-40, 3e-42, -1e-40], np.float32)  # of no full precision
    assert area(tiny, y) == 0.75


@pytest.mark.parametrize("p", [-5.0, 1.0, 3.0, -40.0])
def test_power_mean(p):
    a = np.array([0.9, 0.2, np.nan, 0.61])
    value, left_out = ranking.power_mean(a, p)
    want = np.mean(a[~np.isnan(a)] ** p) ** (1 / p)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    assert left_out == 1
    value, left_out = ranking.power_mean(np.full(3, np.nan), p)
    assert np.isnan(value) and left_out == 3
    assert ranking.power_mean(np.array([0.0, 0.7]), -5.0)[0] == 0


@pytest.mark.parametrize("scheme", resampling.SCHEMES)
def test_replicates_are_weighted_areas_of_the_same_law(scheme):
    scores, y, member = _rows(n=400)
    mask = np.arange(400) < 350
    draw = jit(
        lambda key: ranking.bootstrap(
            key, scores, y, member, replicates=600, scheme=scheme, mask=mask
        )
    )
    found = draw(jax.random.key(4))
    s, yy = scores[:350], y[:350]
    rng = np.random.default_rng(5)
    picked = rng.integers(0, 350, (600, 350))
    want = np.array([metrics.roc_auc_score(yy[i], s[i]) for i in picked])
    centre = metrics.roc_auc_score(yy, s)
    # Standard error of a mean of 600, and of an sd of 600 (se = sd/sqrt(1200)); four of
    # each, and 10% more for Poisson's and Exp's slightly different spread.
    sd = want.std()
    assert abs(np.mean(found.overall) - centre) < 4 * sd / np.sqrt(600) + 2e-3
    assert abs(np.std(found.overall) / sd - 1) < 4 * np.sqrt(2 / 1200) + 0.1
    total = np.sum(np.asarray(found.members + found.others)[:, 0], axis=1)
    if scheme == "multinomial":
        np.testing.assert_array_equal(total, 350)
    else:  # each weight has mean 1 and variance 1
        assert abs(total.mean() - 350) < 4 * np.sqrt(350 / 600)
        assert abs(total.std() / np.sqrt(350) - 1) < 4 * np.sqrt(2 / 1200) + 0.05


def test_poisson_weights_have_the_law():
    w = resampling.weights(jax.random.key(0), "poisson", 200_000)
    counts = np.bincount(np.asarray(w).astype(int), minlength=6)[:6]
    p = stats.poisson.pmf(np.arange(6), 1.0)
    # Five binomial standard errors for each of six counts.
    assert np.all(abs(counts - 200_000 * p) < 5 * np.sqrt(200_000 * p))


def test_replicates_do_not_depend_on_the_chunk_and_clusters_share_a_weight():
    scores, y, member = _rows(n=200)
    key = jax.random.key(6)

    def run(replicates, **options):
        make = ranking.bootstrap
        return jit(
            lambda key: make(key, scores, y, member, replicates=replicates, **options)
        )(key)

    a, b = run(14, chunk=1), run(14, chunk=7)
    for x, z in zip(a, b, strict=True):
        np.testing.assert_allclose(x, z, atol=1e-6)
    # One cluster: every row has the same weight, hence the area on the data itself.
    one = run(5, scheme="bayesian", cluster=np.zeros(200, np.int32))
    np.testing.assert_allclose(
        one.overall, np.full(5, jit(ranking.auc)(scores, y)), atol=1e-6
    )


def test_a_second_call_does_not_compile_again_and_vmap_works():
    scores, y, member = _rows(n=100)
    traces = []

    @jit
    def run(s, y, m):
        traces.append(None)
        return ranking.auc_bias(s, y, m)

    first = run(scores, y, member)
    run(-scores, ~y, ~member)
    assert len(traces) == 1
    both = jit(jax.vmap(ranking.auc_bias))(
        np.stack([scores, -scores]), np.stack([y, y]), np.stack([member, member])
    )
    np.testing.assert_allclose(both.bpsn[0], first.bpsn, atol=1e-6)
    np.testing.assert_allclose(both.bpsn[1], 1 - first.bpsn, atol=1e-6)


@pytest.mark.parametrize("n", [0, 1])
def test_next_to_no_rows(n):
    rows = (np.zeros(n), np.zeros(n, bool), np.zeros((n, 2), bool))
    found = jit(ranking.auc_bias)(*rows)
    assert np.isnan(found.overall) and np.isnan(found.final)


def test_errors_name_what_is_wrong():
    scores, y, member = _rows(n=20)
    with pytest.raises(ValueError, match="labels .*one of each for every row"):
        ranking.auc_bias(scores, y[:3], member)
    with pytest.raises(ValueError, match="membership has shape"):
        ranking.auc_bias(scores, y, member[:3])
    with pytest.raises(ValueError, match="is not one of all, targeted"):
        ranking.auc_bias(scores, y, member, background="none")
    with pytest.raises(ValueError, match="power=0"):
        ranking.auc_bias(scores, y, member, power=0.0)
    with pytest.raises(ValueError, match="not clusters"):
        ranking.bootstrap(
            jax.random.key(0),
            scores,
            y,
            member,
            scheme="multinomial",
            cluster=np.arange(20),
        )
    with pytest.raises(ValueError, match="weights has shape"):
        ranking.auc(scores, y, weights=np.ones(3))
    point = jit(ranking.auc_bias)(scores, y, member)
    with pytest.raises(ValueError, match="replicates.subgroup"):
        ranking_table.summarise(point, point, "abcd")


@pytest.mark.data
def test_hatexplain_with_length_as_score(data_dir):
    with gzip.open(data_dir / "hatexplain" / "test.jsonl.gz") as file:
        posts = [json.loads(line) for line in file]
    member = np.array(
        [
            [sum(c in t for t in p["annotators"]["target"]) >= 2 for c in COMMUNITIES]
            for p in posts
        ]
    )
    toxic = np.array([p["label"] != "normal" for p in posts])
    scores = np.array([len(p["text"]) for p in posts])
    assert (len(posts), toxic.sum(), member.any(1).sum()) == (1924, 1142, 1090)
    assert member.sum(0).tolist() == [315, 194, 188, 182, 147, 85, 67, 52, 36, 35]
    for background, means in (
        ("targeted", [0.496349, 0.445643, 0.497318]),
        ("all", [0.496349, 0.435139, 0.505362]),
    ):
        found = _bias[background](scores, toxic, member)
        np.testing.assert_allclose(found.overall, 0.509613, atol=1e-6)
        np.testing.assert_allclose(found.power_means, means, atol=1e-6)
        want = _oracle(scores, toxic, member, background == "targeted")
        np.testing.assert_allclose(found.bpsn, want["bpsn"], atol=1e-6)
    draws = jit(
        lambda key: ranking.bootstrap(key, scores, toxic, member, replicates=300)
    )(jax.random.key(0))
    table = ranking_table.summarise(found, draws, COMMUNITIES)
    for row in table.identities[:-1]:
        assert row.subgroup.lo < row.subgroup.value < row.subgroup.hi
    # 1,142 and 782 posts: a standard error of 0.0134, 3.92 of them between the ends.
    assert 0.04 < table.overall.hi - table.overall.lo < 0.065
    low, high = np.quantile(np.asarray(draws.bpsn)[:, 0], [0.025, 0.975])
    np.testing.assert_allclose(table.identities[0].bpsn[1:3], (low, high), rtol=1e-6)
    last = table.identities[-1]
    assert last.flags == ("2 negatives, fewer than 10",)
    # Both are missing from a replicate with probability e^-2 = 0.135: 41 of 300, sd 6.
    assert 17 <= last.subgroup.n_undefined <= 65 and np.isnan(last.subgroup.lo)
    assert last.subgroup.reason == "no interval: 2 negatives among members"


@pytest.mark.parametrize("wrong", [[0.1, 0.9], [-1, 1], [np.nan, 1.0], [0, 2]])
def test_numbers_are_no_flags(wrong):
    wrong = np.array(wrong * 2)
    member = np.ones((4, 1), bool)
    with pytest.raises(ValueError, match="labels=.* (are no flags|is neither 0 nor 1)"):
        ranking.auc_bias(np.arange(4.0), wrong, member)
    with pytest.raises(ValueError, match="membership=.* give flags, or 0 and 1"):
        ranking.auc_bias(np.arange(4.0), member[:, 0], wrong[:, None])
    with pytest.raises(ValueError, match="scores=4294967296 is beyond int32"):
        ranking.auc(np.array([2**32, 1]), np.array([0, 1]))
    assert ranking.auc(np.array([2, 1]), np.array([0, 1])) == 0


def test_against_holds_for_all_identities_together():
    """40 worlds where ten identities are drawn at random: no one is below the rest."""
    n, sizes = 600, (90, 60, 60, 50, 50, 45, 45, 40, 40, 40)
    point, draw = (
        jit(ranking.auc_bias),
        jit(
            lambda key, s, y, m: ranking.bootstrap(
                key, s, y, m, replicates=100, scheme="bayesian"
            )
        ),
    )
    rng, wrong, below, alone = np.random.default_rng(8), 0, 0, 0
    for world in range(40):
        y = rng.random(n) < 0.5
        scores = (rng.normal(size=n) + 1.2 * y).astype(np.float32)
        member = np.zeros((n, 10), bool)
        for i, size in enumerate(sizes):
            member[rng.choice(n, size, replace=False), i] = True
        for shifted in (False, True):
            s = np.where(member[:, 0] & shifted, scores + 1.0, scores)
            s = s.astype(np.float32)
            draws = draw(jax.random.key(world), s, y, member)
            table = ranking_table.summarise(point(s, y, member), draws, "abcdefghij")
            found = [row.against.hi < 0 for row in table.identities]
            if shifted:
                below += found[0]
            else:
                wrong += any(found)
                overall = table.overall.value
                alone += any(row.bpsn.hi < overall for row in table.identities)
    row = table.identities[0]
    want = row.bpsn.value - table.overall.value
    assert row.against.value == pytest.approx(want, abs=1e-6)
    # Binomial(40, .05) is above 5 with a probability of 1.4%; ends of each area by
    # itself blame somebody in about a fifth of the worlds.
    assert wrong <= 5 and below >= 35 and alone > wrong
