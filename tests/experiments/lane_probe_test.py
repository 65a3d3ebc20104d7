"""The probe: what it offers, when it stops, and that its choice stays."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trustml.experiments import lane_probe
from trustml.experiments.lane_probe import Candidate, Timing


def offered(**changes):
    options = {"kernels": ("vmap",), "lanes": 0, "group": 0, "cohort": 50}
    options |= {"lane_bytes": 10, "free_bytes": 10**6}
    return lane_probe.candidates(**{**options, **changes})


@pytest.mark.parametrize(
    "changes, lanes",
    [
        ({}, [1, 4, 8, 16, 32]),
        ({"cohort": 10}, [1, 4, 8]),
        ({"free_bytes": 45}, [1, 4]),
        ({"free_bytes": 0}, [1]),
        ({"group": 4}, [4, 8, 16, 32]),
        ({"group": 3, "cohort": 12}, [3, 6, 9]),
        ({"group": 5, "free_bytes": 1}, [5]),
        ({"lanes": 7}, [7]),
    ],
    ids=["all", "cohort", "memory", "none", "groups", "odd", "one group", "given"],
)
def test_what_is_offered(changes, lanes):
    found = offered(**changes)
    assert [c.lanes for c in found] == lanes
    assert {c.group for c in found} == {changes.get("group", 0)}
    both = offered(**changes, kernels=("im2col", "vmap"))
    assert [c.kernel for c in both] == ["im2col"] * len(lanes) + ["vmap"] * len(lanes)


def timed(monkeypatch, seconds, candidates, steps=None):
    """`find` with a clock that only `build` moves; seconds: candidate -> of a step."""
    now, built = [0.0], []
    clock = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(lane_probe, "time", clock)

    def build(candidate, population, narrowing):
        assert not narrowing  # one program for each
        built.append(candidate)

        def run(state, key, chosen, place):
            count = chosen.sizes // 5
            assert population >= len(count)
            now[0] += float(count.sum()) * seconds[candidate[:2]]
            return state, types.SimpleNamespace(steps=count)

        init = lambda params, root: types.SimpleNamespace(server=params)  # noqa: E731
        return types.SimpleNamespace(init=init, run=run)

    steps = np.full(32, 4) if steps is None else steps
    found = lane_probe.find(
        candidates, build, jnp.zeros(2), steps, 20, lambda rows: None
    )
    return found, built


def test_lanes_go_up_while_it_pays(monkeypatch):
    each = {1: 1.0, 4: 0.5, 8: 0.55, 16: 0.9, 32: 0.1}
    seconds = {("vmap", lanes): s / 1000 for lanes, s in each.items()}
    found, built = timed(monkeypatch, seconds, offered())
    assert [c.lanes for c in built] == [1, 4, 8, 16]  # 0.5 / 0.9 is below 0.8
    assert [t.candidate.lanes for t in found] == [4, 8, 16, 1]
    np.testing.assert_allclose(found[0].steps_per_second, 2000, rtol=1e-6)


def test_a_hopeless_kernel_is_given_up(monkeypatch):
    seconds = {("im2col", n): 1e-3 for n in lane_probe.LADDER}
    seconds |= {("vmap", n): 1e-1 for n in lane_probe.LADDER}
    found, built = timed(monkeypatch, seconds, offered(kernels=lane_probe.KERNELS))
    assert [c.kernel for c in built] == ["im2col"] * 5 + ["vmap"]
    assert found[-1].candidate == Candidate("vmap", 1)


def test_idle_lanes_count(monkeypatch):
    # One client has all the work: only one lane of eight is ever useful.
    seconds = {("vmap", n): 1e-3 for n in lane_probe.LADDER}
    steps = np.array([100, 1, 1, 1, 1, 1, 1, 1])
    candidates = [Candidate("vmap", 8, 8)]  # groups of eight: no ladder
    found, _ = timed(monkeypatch, seconds, [*candidates, Candidate("vmap", 1)], steps)
    rates = {t.candidate.lanes: t.steps_per_second for t in found}
    np.testing.assert_allclose(rates[8], 1000 * 107 / 800, rtol=1e-6)
    np.testing.assert_allclose(rates[1], 1000, rtol=1e-6)


def test_a_single_candidate_is_not_timed(monkeypatch):
    found, built = timed(monkeypatch, {}, [Candidate("vmap", 3)])
    assert found[0].candidate.lanes == 3 and not built


def test_what_was_chosen_stays(tmp_path):
    best = Candidate("im2col", 8, 2)
    timings = [Timing(best, 20.04), Timing(Candidate("vmap", 1), 10.0)]
    workdir = tmp_path / "run"
    assert lane_probe.settle(workdir, lambda: timings) == best

    def never():
        raise AssertionError("timed again")

    assert lane_probe.settle(workdir, never) == best
    kept = json.loads((workdir / lane_probe.FILE).read_text())
    assert kept["timings"][0] == {**best._asdict(), "steps_per_second": 20.0}
    # A half-written file of a killed run is timed anew, and whole afterwards.
    (workdir / lane_probe.FILE).write_text("")
    assert lane_probe.settle(workdir, lambda: timings) == best
    assert lane_probe.settle(workdir, never) == best
    assert lane_probe.sentence(best) == (
        "clients train in 8 lanes, 2 at a time, convolutions as products"
    )
    assert jax.tree.leaves(best) == ["im2col", 8, 2]
