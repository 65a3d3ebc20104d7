"""A device that fails between rounds or in one: a sentence, and nothing is lost."""

import jax
import numpy as np
import pytest

from launch import run as launcher
from tests.experiments import federate_test
from trustml import checkpoint, config
from trustml.experiments import build, device_loss, federate


def weights(found):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(found.params)]


def failing(make, when, how):
    """`rounds.make` whose round number `when` ends in a runtime error."""
    state = {"round": 0}

    def broken(*args, **kwargs):
        made = make(*args, **kwargs)

        def run(*inputs):
            if not isinstance(inputs[0], tuple):  # of the timed probe
                return made.run(*inputs)
            if how == "before" and state["round"] == when:
                raise jax.errors.JaxRuntimeError("UNAVAILABLE: device 0 is lost")
            found = made.run(*inputs)
            if how == "after" and state["round"] == when:
                raise jax.errors.JaxRuntimeError("INTERNAL: device 0 is lost")
            state["round"] += 1
            return found

        return made._replace(run=run)

    return broken


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_lost_device_costs_no_round(tmp_path, monkeypatch, how):
    run = federate_test.config(
        federated__selection="oort",
        federated__availability="bernoulli",
        federated__reachable=0.8,
        train__checkpoint_every=5,
        federated__lanes=2,
    )
    data = build.dataset(run)
    task = build.task(run, data)
    whole = federate.fit(run, data, task, tmp_path / "whole", quiet=True)
    make = federate.rounds.make
    monkeypatch.setattr(federate.rounds, "make", failing(make, 3, how))
    with pytest.raises(device_loss.DeviceError, match="after round 3 is saved; run"):
        federate.fit(run, data, task, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(federate.rounds, "make", make)
    assert checkpoint.Checkpointer(tmp_path / "cut" / "checkpoints").steps() == [0, 3]
    again = federate.fit(run, data, task, tmp_path / "cut", quiet=True)
    assert weights(again) == weights(whole)
    np.testing.assert_array_equal(again.taken, whole.taken)
    jax.tree.map(np.testing.assert_array_equal, again.tally, whole.tally)


def test_what_cannot_be_read_leaves_the_checkpoint(tmp_path):
    saver = checkpoint.Checkpointer(tmp_path)
    saver.save(2, {"x": np.arange(3)})
    gone = jax.numpy.arange(3)
    gone.delete()
    with pytest.raises(device_loss.DeviceError, match="after step 2 is saved"):
        with device_loss.explained(saver, "step", lambda: (4, {"x": gone})):
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: gone")
    found = saver.restore({"x": np.zeros(3, int)})
    assert found.step == 2
    np.testing.assert_array_equal(found.state["x"], np.arange(3))


def test_memory_that_ran_out_has_another_cure(tmp_path):
    saver = checkpoint.Checkpointer(tmp_path)
    with pytest.raises(device_loss.DeviceError, match="free memory, or take fewer"):
        with device_loss.explained(saver, "round", lambda: None):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")


def test_bugs_are_no_lost_devices(tmp_path):
    with pytest.raises(RuntimeError, match="mine"):
        with device_loss.explained(
            checkpoint.Checkpointer(tmp_path), "round", lambda: None
        ):
            raise RuntimeError("mine")


def test_an_evaluation_that_fails_is_made_up_for(tmp_path, monkeypatch):
    run = federate_test.config(train__steps=4, train__eval_every=4)
    data = build.dataset(run)
    task = build.task(run, data)
    whole = federate.fit(run, data, task, tmp_path / "whole", quiet=True)

    def broken(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    measure = federate.scores.per_example
    monkeypatch.setattr(federate.scores, "per_example", broken)
    with pytest.raises(device_loss.DeviceError, match="free memory"):
        federate.fit(run, data, task, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(federate.scores, "per_example", measure)
    again = federate.fit(run, data, task, tmp_path / "cut", quiet=True)
    assert again.rows == whole.rows and weights(again) == weights(whole)


@pytest.mark.parametrize(
    "text", ["INVALID_ARGUMENT: shapes", "INTERNAL: CpuCallback error: ValueError: x"]
)
def test_errors_of_the_program_keep_their_traceback(tmp_path, text):
    saver = checkpoint.Checkpointer(tmp_path)
    with pytest.raises(jax.errors.JaxRuntimeError, match=text[:8]):
        with device_loss.explained(saver, "round", lambda: None):
            raise jax.errors.JaxRuntimeError(text)


def test_the_launcher_prints_the_sentence(tmp_path, capsys, monkeypatch):
    run = federate_test.config()
    monkeypatch.setattr(launcher, "parse", lambda _: launcher.Command(run, tmp_path))
    make = federate.rounds.make
    monkeypatch.setattr(federate.rounds, "make", failing(make, 1, "before"))
    assert launcher.main(["--config=x"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: a device failed: UNAVAILABLE: device 0 is lost")
    assert "\n" not in told.strip()
    assert config.to_json(run) == (tmp_path / "config.json").read_text()
