"""Every closed-form attack: against loops, on noise, on leaks, at the extremes."""

import jax
import numpy as np
import pytest
from scipy import special, stats

from tests.attacks import worlds
from tests.attacks.references_test import sides
from trustml.attacks import closed_form, likelihood, metrics, ratio, references

# Ten shapes: compiling costs more than running, so the compiler does less.
RUN = jax.jit(
    closed_form.scores, compiler_options={"xla_backend_optimization_level": 0}
)
NAMES = tuple(closed_form.THREATS)
A = 0.3


def _oracle(x, lp, rotation, t, i):
    """The scores but attack-P, float64, from their definitions; x[M, n, Q]."""
    inside, outside = sides(rotation, t, i)
    total = dict.fromkeys(name for name in NAMES if name != "attack-P")
    for q in range(x.shape[2]):
        own, ins, outs = x[t, i, q], x[inside, i, q], x[outside, i, q]
        side = {}
        for key, rows, values in (("in", inside, ins), ("out", outside, outs)):
            away, freedom = 0.0, 0
            for j in range(x.shape[1]):
                part = x[sides(rotation, t, j)[0 if key == "in" else 1], j, q]
                away += ((part - part.mean()) ** 2).sum()
                freedom += len(part) - 1
            pooled, n = away / freedom, len(rows)
            squares = ((values - values.mean()) ** 2).sum()
            dof = 4 + n
            side[key] = {
                "mean": values.mean(),
                "own": squares / n + 1e-6,
                "pooled": pooled,
                "scale": (4 * pooled + squares) / dof * (1 + 1 / n),
                "dof": dof,
            }
        world = {r: np.exp(lp[r, i, q]) for r in (*inside, *outside)}
        p_in = np.mean([world[r] for r in inside])
        p_out = np.mean([world[r] for r in outside])
        a, b = side["in"], side["out"]
        own_variance = "own" if min(len(inside), len(outside)) >= 16 else "pooled"

        def normal(variance, a=a, b=b, own=own):
            return stats.norm.logpdf(own, a["mean"], a[variance] ** 0.5) - (
                stats.norm.logpdf(own, b["mean"], b[variance] ** 0.5)
            )

        d = own - b["mean"]
        terms = {
            "loss": lp[t, i, q] / x.shape[2],
            "attack-R": ((outs < own).sum() + 0.5 * (1 + d / (1 + abs(d))))
            / (len(outs) + 1)
            / x.shape[2],
            "calibrated": d / x.shape[2],
            "LiRA": normal(own_variance),
            "LiRA, variance per example": normal("own"),
            "LiRA, pooled variance": normal("pooled"),
            "LiRA offline": d / b[own_variance] ** 0.5,
            "Student-t": stats.t.logpdf(own, a["dof"], a["mean"], a["scale"] ** 0.5)
            - stats.t.logpdf(own, b["dof"], b["mean"], b["scale"] ** 0.5),
            "Student-t offline": d / b["scale"] ** 0.5,
            "RMIA": lp[t, i, q] - np.log((p_in + p_out) / 2),
            "RMIA offline": lp[t, i, q] - np.log(((1 + A) * p_out + 1 - A) / 2),
        }
        total = {name: (old or 0.0) + terms[name] for name, old in total.items()}
    return total


@pytest.mark.parametrize("models", [8, 36])
def test_scores_are_those_of_plain_loops(models):
    # 36 models: 17 references a side, where 'auto' takes the variance per example.
    n = 14
    member, pair = worlds.paired(models, n)
    x = worlds.leaky(member, queries=2)
    lp = worlds.log_prob(x)
    rotation = references.rotate(member, pair)
    found = RUN(x, lp, rotation)
    wide, wide_lp = x.astype(np.float64), lp.astype(np.float64)
    for name in NAMES:
        assert found[name].value.shape == (models, n), name
        assert found[name].value.dtype == np.float32, name
        assert np.asarray(found[name].valid).all(), name
    for t in (0, models - 1):
        want = [_oracle(wide, wide_lp, rotation, t, i) for i in range(n)]
        for name in want[0]:
            values = np.array([each[name] for each in want])
            # Where the log terms are large the sum keeps 1e-5 of them, not of itself.
            size = max(1.0, np.abs(values).max())
            np.testing.assert_allclose(
                found[name].value[t], values, rtol=1e-5, atol=1e-5 * size, err_msg=name
            )


def test_attack_p_is_the_share_below_and_orders_as_the_margin_does():
    member, pair = worlds.paired(8, 400)
    x = worlds.leaky(member)
    found = RUN(x, worlds.log_prob(x), references.rotate(member, pair))["attack-P"]
    for t in range(8):
        others = x[t, ~member[t], 0]
        below = (others[None] < x[t, :, :1]).sum(1)
        value = np.asarray(found.value[t]) * (others.size + 1)
        assert (value >= below - 1e-4).all() and (value <= below + 1 + 1e-4).all()
        np.testing.assert_array_equal(
            np.argsort(value, kind="stable"), np.argsort(x[t, :, 0], kind="stable")
        )


def _mean_auc(scores, member):
    """Mean over targets."""
    value, valid = np.asarray(scores.value), np.asarray(scores.valid)
    areas = []
    for v, m, ok in zip(value, member, valid, strict=True):
        m, rank = m[ok], stats.rankdata(v[ok])
        wins = rank[m].sum() - m.sum() * (m.sum() + 1) / 2
        areas.append(wins / (m.sum() * (~m).sum()))
    return float(np.mean(areas))


@pytest.mark.parametrize("models", [4, 6, 8, 64])
def test_on_noise_every_attack_is_at_chance(models):
    n = 8000 if models < 10 else 2000
    member, pair = worlds.paired(models, n, seed=models)
    x = worlds.noise(member, seed=models + 1)
    found = RUN(x, worlds.log_prob(x), references.rotate(member, pair))
    # s.e. of one target's AUC under the null: sqrt((n + 1)/(12 (n/2)^2)); that of the
    # mean over targets is smaller, by how much depends on what they share.
    error = np.sqrt((n + 1) / (3 * n * n))
    for name in NAMES:
        if not np.asarray(found[name].valid).any():
            # One reference a side has no variance of its own.
            assert models == 4 and name == "LiRA, variance per example"
            continue
        assert abs(_mean_auc(found[name], member) - 0.5) < 3 * error, name


def test_with_the_partner_kept_noise_is_far_from_chance():
    member, pair = worlds.paired(4, 8000)
    x = worlds.noise(member)
    wrong = references.Rotation(member, ~np.eye(4, dtype=bool), None)
    found = RUN(x, worlds.log_prob(x), wrong)
    assert _mean_auc(found["Student-t"], member) < 0.45


@pytest.mark.parametrize("design", [worlds.halves, worlds.coins])
def test_on_noise_designs_without_pairs_are_at_chance(design):
    n = 8000
    member, pair = design(8, n)
    x = worlds.noise(member, seed=1)
    found = RUN(x, worlds.log_prob(x), references.rotate(member, pair))
    for name in NAMES:
        # As above; coins leave sides of other sizes than n/2, which changes little.
        bound = 3 * np.sqrt((n + 1) / (3 * n * n))
        assert abs(_mean_auc(found[name], member) - 0.5) < bound, name


@pytest.mark.parametrize("budget", [2, 4, 6])
def test_a_leak_is_found_and_permuted_membership_is_chance(budget):
    n = 8000
    member, pair = worlds.paired(8, n)
    x = worlds.leaky(member)
    found = RUN(x, worlds.log_prob(x), references.rotate(member, pair, budget=budget))
    rng = np.random.default_rng(1)
    shuffled = rng.permuted(member, axis=1)
    error = np.sqrt((n + 1) / (3 * n * n))
    for name in NAMES:
        if budget == 2 and name == "LiRA, variance per example":
            continue  # one reference a side
        area = _mean_auc(found[name], member)
        # Variances of 2 or 7 values mislead, most of all unpooled.
        weak = name in ("loss", "attack-P", "LiRA, variance per example")
        assert area > (0.55 if weak else 0.65), (name, area)
        assert abs(_mean_auc(found[name], shuffled) - 0.5) < 3 * error, name


def test_shuffled_membership_of_the_design_is_at_chance():
    n = 8000
    member, pair = worlds.paired(8, n)
    x = worlds.leaky(member)
    other, _ = worlds.paired(8, n, seed=99)  # another draw than the models saw
    found = RUN(x, worlds.log_prob(x), references.rotate(other, pair))
    for name in NAMES:
        error = np.sqrt((n + 1) / (3 * n * n))
        assert abs(_mean_auc(found[name], other) - 0.5) < 3 * error, name


def test_extreme_margins_stay_finite_and_in_order():
    member, pair = worlds.paired(8, 400)
    x = worlds.noise(member)
    rotation = references.rotate(member, pair)
    # The target's margins run from -80 to 80, the references do not know the examples.
    x[:] = np.random.default_rng(0).normal(size=x.shape)
    x[:, :] = x[:, :1]
    x[0, :, 0] = np.linspace(-80, 80, 400)
    found = RUN(x, worlds.log_prob(x), rotation)
    for name in NAMES:
        value = np.asarray(found[name].value)
        assert np.isfinite(value).all(), name
    assert (np.diff(np.asarray(found["attack-P"].value)[0]) > 0).all()
    # OUT references differ between examples; where they agree the order is exact.
    flat = references.summary(x, rotation)
    key = np.asarray(flat.mean_out)[0, :, 0]
    for name in ("attack-R", "calibrated", "LiRA offline", "Student-t offline"):
        for group in np.unique(key.round(4)):
            rows = np.flatnonzero(key.round(4) == group)
            step = np.diff(np.asarray(found[name].value)[0, rows])
            assert (step > 0).all(), name
    # p rounds to 1 from 17 on, where the log of it is still told apart...
    loss = np.diff(np.asarray(found["loss"].value)[0])
    assert (loss > 0).all()


def test_nan_is_not_valid_for_the_example_and_harms_nothing_else():
    member, pair = worlds.paired(8, 400)
    x = worlds.leaky(member)
    lp = worlds.log_prob(x)
    rotation = references.rotate(member, pair)
    clean = RUN(x, lp, rotation, np.arange(400) != 5)
    x[2, 5], lp[2, 5] = np.nan, np.nan
    found = RUN(x, lp, rotation, np.ones(400, bool))
    for name in NAMES:
        valid = np.asarray(found[name].valid)
        assert (~valid).sum() == 8 and not valid[:, 5].any(), name
        assert np.isnan(np.asarray(found[name].value)[:, 5]).all(), name
        np.testing.assert_allclose(
            found[name].value[valid], clean[name].value[valid], rtol=1e-6
        )


def test_a_missing_side_is_not_valid():
    # Examples 0 and 1: never, and always, in a training set but by pairs of two.
    member, pair = worlds.paired(8, 400, shared=False)
    member[:, 0] = False
    x = worlds.leaky(member)
    found = RUN(x, worlds.log_prob(x), references.rotate(member, pair))
    for name, who in closed_form.THREATS.items():
        valid = np.asarray(found[name].valid)[:, 0]
        assert valid.all() if who.references != "IN+OUT" else not valid.any(), name


def test_every_attack_finds_an_overfitted_model():
    # Nearest neighbours with a kernel: the model is its training set.
    rng = np.random.default_rng(0)
    n, models = 400, 8
    inputs = rng.normal(size=(n, 5))
    label = (inputs[:, 0] + 1.5 * rng.normal(size=n) > 0).astype(int)
    near = np.exp(-np.square(inputs[:, None] - inputs).sum(-1))
    member, pair = worlds.paired(models, n)
    votes = np.stack([near @ (m[:, None] * np.eye(2)[label]) for m in member]) + 1e-3
    p = votes / votes.sum(-1, keepdims=True)
    lp = np.log(p[:, np.arange(n), label])[:, :, None]
    margin = lp - np.log(p[:, np.arange(n), 1 - label])[:, :, None]
    found = RUN(
        margin.astype(np.float32),
        lp.astype(np.float32),
        references.rotate(member, pair),
    )
    for name in NAMES:
        # s.e. of one target's AUC at chance: .029.
        assert _mean_auc(found[name], member) > 0.6, name


def test_compiled_once_for_all_budgets():
    member, pair = worlds.paired(10, 30)
    x = worlds.leaky(member)
    traced = []

    @jax.jit
    def run(*arguments):
        traced.append(1)
        return closed_form.scores(*arguments)["loss"]

    for budget in (2, 4, 8):
        run(x, worlds.log_prob(x), references.rotate(member, pair, budget=budget))
    assert len(traced) == 1


# Variants that are seen elsewhere, and lose.


def _both(models=32, n=2000, budget=8, seed=0):
    member, pair = worlds.paired(models, n, seed)
    x = worlds.leaky(member, seed + 1)
    rotation = references.rotate(member, pair, budget=budget)
    return member, x, rotation, references.summary(x, rotation)


def _tpr(scores, member, fpr=0.01):
    value = np.asarray(getattr(scores, "value", scores))
    return float(
        np.mean(
            [
                metrics.tpr_at_fpr(v[m], v[~m], fpr).tpr
                for v, m in zip(value, member, strict=True)
            ]
        )
    )


def _auc_of(value, member):
    return _mean_auc(references.Scores(value, np.ones(member.shape, bool)), member)


def test_two_sided_offline_loses_against_one_sided():
    member, x, rotation, seen = _both()
    right = RUN(x, worlds.log_prob(x), rotation)["LiRA offline"]
    z = np.asarray(right.value)
    assert _auc_of(z**2, member) < _mean_auc(right, member) - 0.05
    assert _tpr(z**2, member) < _tpr(right, member)
    far = np.argsort(z[0])
    assert z[0, far[0]] < 0 < z[0, far[-1]]


def test_saturated_tail_probabilities_lose_the_low_end():
    member, x, _, seen = _both()
    right = likelihood.lira_offline(x, seen, variance="per_example")
    assert _tpr(right, member, 0.002) > 0.004
    # 1 - p below 6e-8 rounds to 0: everything above z = 5.4 is one tie.
    z = np.asarray(right.value)
    assert _tpr(special.ndtr(z).astype(np.float32), member, 0.002) == 0.0
    log_p = np.log(special.ndtr(z).astype(np.float32) + np.float32(1e-30))
    assert _tpr(log_p, member, 0.002) == 0.0


def test_a_variance_that_is_not_centred_per_example_loses():
    member, x, rotation, seen = _both()
    right = RUN(x, worlds.log_prob(x), rotation)["Student-t"]
    centre = [np.asarray(seen.mean_in), np.asarray(seen.mean_out)]
    wild = [x[m].std() for m in (member, ~member)]
    value = (
        stats.norm.logpdf(x, centre[0], wild[0])
        - stats.norm.logpdf(x, centre[1], wild[1])
    )[:, :, 0]
    assert _auc_of(value, member) < _mean_auc(right, member) - 0.01
    assert _tpr(value, member) < _tpr(right, member) - 0.02


def test_the_counting_score_is_never_above_the_log_ratio_and_ties_its_top():
    member, x, rotation, _ = _both()
    lp = worlds.log_prob(x)
    right = RUN(x, lp, rotation)["RMIA"]
    counted = ratio.counting(right, ~member)
    value = np.asarray(right.value, np.float64)
    for t in (0, 5):
        others = value[t, ~member[t]]
        at_least = (value[t][:, None] >= others[None]).sum(1) - ~member[t]
        want = at_least / (others.size - ~member[t])
        np.testing.assert_allclose(counted.value[t], want, rtol=1e-6)
    # With the evaluated non-members as z nothing below the first of them is lost; with
    # fewer z, as in practice, the false-alarm rates below 1/Z are.
    few = ~member & (np.random.default_rng(3).random(member.shape[1]) < 0.1)
    fewer = ratio.counting(right, few)
    for fpr in (0.002, 0.01, 0.1):
        for count in (counted, fewer):
            assert _tpr(count, member, fpr) <= _tpr(right, member, fpr)
    assert _tpr(fewer, member, 0.002) < 0.5 * _tpr(right, member, 0.002)
