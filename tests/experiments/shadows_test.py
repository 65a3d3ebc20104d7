"""The driver: one compilation, groups kept and taken up again, sizes found out."""

import json

import jax
import jax.monitoring
import numpy as np
import optax
import pytest

from trustml import parallel
from trustml import task as task_lib
from trustml.attacks import designs, signals
from trustml.attacks import shadows as engine
from trustml.experiments import shadows

N, D, C, M = 40, 3, 2, 6


def init(key):
    return {"w": jax.random.normal(key, (D, C))}


def predict(params, example):
    return jax.nn.log_softmax(example["features"] @ params["w"])


TASK = task_lib.classification(init, predict)
DESIGN = designs.paired(M, N, seed=0)
SCORE = signals.of(TASK)


def make_train(steps):
    return engine.trainer(
        TASK.init, TASK.loss, optax.sgd(0.5), steps=steps or 5, batch_size=4
    )


@pytest.fixture
def columns():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(N, D)).astype(np.float32)
    return {"features": features, "label": (features[:, 0] > 0).astype(np.int32)}


@pytest.fixture
def own():
    return engine.inputs(jax.random.key(0), DESIGN.index)


def run(columns, own, workdir, **changes):
    options = {"group_size": 2, "quiet": True, "fingerprint": "a"}
    options |= {"devices": parallel.devices(1), "workdir": workdir} | changes
    return shadows.run(make_train, SCORE, columns, own, **options)


@pytest.fixture(scope="module")
def compilations():
    """Names of what is compiled from here on."""
    found = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: (
            found.append(name) if "backend_compile" in name else 0
        )
    )
    return found


def test_every_model_as_if_alone_and_one_compilation(
    columns, own, tmp_path, compilations
):
    margin, log_prob = run(columns, own, tmp_path / "a")
    assert margin.shape == log_prob.shape == (M, N, 1)
    alone = jax.jit(shadows.group_of(make_train(None), SCORE))
    for m in range(M):
        want = alone(columns, engine.take(own, np.array([m])))
        np.testing.assert_allclose(margin[m], want[0][0], atol=1e-5)
        np.testing.assert_allclose(log_prob[m], want[1][0], atol=1e-5)
    # 3 groups, and of everything of which there is one: the program.
    before = len(compilations)
    run(columns, own, tmp_path / "b")
    assert len(compilations) - before == 1
    rows = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4, 6]


def test_layouts_give_the_same(columns, own, tmp_path):
    want, _ = run(columns, own, tmp_path / "one")
    for size, devices in ((4, 1), (2, 2)):
        options = {"group_size": size, "devices": parallel.devices(devices)}
        got, _ = run(columns, own, tmp_path / f"{size}", **options)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_what_is_kept_is_not_trained_again(columns, own, tmp_path, capsys):
    want, _ = run(columns, own, tmp_path)
    files = sorted((tmp_path / "shadows").iterdir())
    assert [file.name for file in files] == [f"models_0000{m}_2.npz" for m in (0, 2, 4)]
    files[1].unlink()
    stamps = [files[n].stat().st_mtime_ns for n in (0, 2)]
    # Other inputs show who is trained: models 2 and 3, and nobody else.
    other = engine.inputs(jax.random.key(1), DESIGN.index)
    got, _ = run(columns, other, tmp_path, group_size=0, quiet=False)
    assert "trained at once" not in capsys.readouterr().out, "the kept size is taken"
    same = [np.allclose(got[m], want[m], atol=1e-5) for m in range(M)]
    assert same == [True, True, False, False, True, True]
    assert [files[n].stat().st_mtime_ns for n in (0, 2)] == stamps
    again, _ = run(columns, own, tmp_path)
    np.testing.assert_array_equal(again, got)


def test_a_torn_file_and_another_fingerprint_are_made_anew(
    columns, own, tmp_path, capsys
):
    want, _ = run(columns, own, tmp_path)
    files = sorted((tmp_path / "shadows").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:100])
    other = engine.inputs(jax.random.key(1), DESIGN.index)
    got, _ = run(columns, other, tmp_path, quiet=False)
    assert "1 kept groups are of other data" in capsys.readouterr().out
    assert not np.allclose(got[:2], want[:2], atol=1e-3)
    np.testing.assert_array_equal(got[2:], want[2:])
    changed, _ = run(columns, other, tmp_path, fingerprint="b")
    assert not np.allclose(changed[2:], want[2:], atol=1e-3)


def test_a_killed_run_goes_on(columns, own, tmp_path, monkeypatch):
    want, _ = run(columns, own, tmp_path / "whole")
    write, calls = shadows._write, []

    def killed(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(shadows, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            run(columns, own, tmp_path / "part")
    got, _ = run(columns, own, tmp_path / "part")
    np.testing.assert_array_equal(got, want)
    texts = [(tmp_path / x / "metrics.jsonl").read_text() for x in ("whole", "part")]
    assert texts[0] == texts[1]


def test_memory_that_runs_out_halves_the_group_once(
    columns, own, tmp_path, monkeypatch, capsys
):
    train, sizes = shadows._train, []

    def small(program, columns, own, left, size, keep):
        sizes.append(size)
        if size > most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        train(program, columns, own, left, size, keep)

    monkeypatch.setattr(shadows, "_train", small)
    most = 2
    run(columns, own, tmp_path / "a", group_size=4, quiet=False)
    assert sizes == [4, 2] and "do not fit into memory" in capsys.readouterr().out
    most = 1
    with pytest.raises(jax.errors.JaxRuntimeError):
        run(columns, own, tmp_path / "b", group_size=4)


def test_two_models_of_one_key_are_refused(columns, own, tmp_path):
    twice = engine.take(own, [0, 1, 0])
    with pytest.raises(ValueError, match="key of model=2 is that of model 0"):
        run(columns, twice, tmp_path)


def probe(seconds_of, columns, own, count=M):
    """The choice where a group of G takes `seconds_of[G]` by the clock."""
    now, asked = [0.0], []

    class Program:
        def __init__(self, size):
            self.size = size

        def __call__(self, *_):
            now[0] += seconds_of[self.size]
            return ()

    def vmap(train, axes):
        def fn(columns, own):
            asked.append(own.index.shape[0])
            return ()

        return fn

    with pytest.MonkeyPatch.context() as patch:
        lower = type("L", (), {})
        patch.setattr(shadows.jax, "vmap", vmap)

        def jit(fn):
            def lowered(columns, own):
                fn(columns, own)
                made = lower()
                made.compile = lambda: Program(own.index.shape[0])
                return made

            made = lower()
            made.lower = lowered
            return made

        patch.setattr(shadows.jax, "jit", jit)
        size = shadows.choose_group_size(
            make_train, SCORE, columns, own, parallel.devices(1), clock=lambda: now[0]
        )
    return size, asked


CLOCKS = {
    "no gain": ({1: 1.0, 2: 2.0}, 1, [1, 2]),
    "up to four": ({1: 1.0, 2: 1.5, 4: 2.0, 8: 4.0}, 4, [1, 2, 4, 8]),
    "as many as there are": ({1: 1, 2: 1, 4: 1, 8: 1}, 8, [1, 2, 4, 8]),
}


@pytest.mark.parametrize("seconds, size, tried", CLOCKS.values(), ids=CLOCKS)
def test_the_clock_decides_on_a_cpu(columns, own, seconds, size, tried):
    assert probe(seconds, columns, own) == (size, tried)


def test_the_real_probe_answers_with_a_power_of_two(columns, own):
    # Which one is the machine's affair.
    size = shadows.choose_group_size(
        make_train, SCORE, columns, own, parallel.devices(1), steps=2
    )
    assert size in (1, 2, 4, 8)


def test_memory_decides_on_an_accelerator():
    # 10 + 5 (G - 1) <= 0.8 limit.
    assert shadows.fitting(10, 15, 1000, 64) == 64
    assert shadows.fitting(10, 15, 100, 64) == 8  # 45 fits in 80, 85 does not
    assert shadows.fitting(10, 15, 1, 64) == 1
    assert shadows.fitting(10, 9, 100, 32) == 32


def test_signals_come_back_as_they_were(tmp_path):
    margin = np.random.default_rng(0).normal(size=(M, N, 2)).astype(np.float32)
    made = signals.assemble(margin, margin, DESIGN, np.zeros(N), fingerprint="abc")
    for kept in (shadows.Kept(made, 2.5, 1e-5), shadows.Kept(made)):
        shadows.save(tmp_path / "s.npz", kept)
        found = shadows.load(tmp_path / "s.npz")
        assert found[1:] == kept[1:] and found.signals.fingerprint == "abc"
        for x, y in zip(found.signals[:-1], made[:-1], strict=True):
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(ValueError, match="does not hold signals of shadow models"):
        shadows.load(tmp_path / "other.npz")
