"""Sensitivity of runs to what tells an attribute: planted reliance, refusals."""

import numpy as np
import pytest

from tests.experiments import fairness_test as made
from trustml.experiments import (
    build,
    group_clipping,
    group_sensitivity,
    loop,
)


def grouping(data, name="kind", names=("a", "b")):
    of = {part: data.groups[part][name] for part in ("train", "valid", "test")}
    return group_clipping.Grouping(name, names, of)


def test_who_goes_by_the_word_is_found(tmp_path):
    """One model goes by the word that tells the kind, another by a different word."""
    data, config = made.world(), made.config_of(privacy__check=False)
    found = group_sensitivity.status_models(config, data, (grouping(data),), tmp_path)
    status = found["kind"]
    assert status.accuracy.value > 0.95, "'zorb' and 'blip' tell it"
    assert status.majority < 0.6
    task = build.task(config, data)
    params = loop.fit(config, data, task, tmp_path / "toxic", quiet=True).params
    other = group_sensitivity.of_run(config, data, task, params, status)
    same = group_sensitivity.of_run(config, data, status.task, status.params, status)
    for innocent, guilty, size in zip(
        other["groups"],
        same["groups"],
        np.bincount(data.groups["test"]["kind"]),
        strict=True,
    ):
        assert innocent["n"] == guilty["n"] == size
        assert guilty["reliance"].lo > 1.5 > 1 > innocent["reliance"].hi
        assert guilty["displacement"].lo > innocent["displacement"].hi


def test_whose_groups_are_not_known_in_training_have_no_model(tmp_path):
    data = made.world(n=60)
    unknown = grouping(data, "Zorbs", ("no", "yes"))
    config = made.config_of()
    assert group_sensitivity.status_models(config, data, (unknown,), tmp_path) == {}


@pytest.mark.parametrize("lacks", ["embed", "head", "length"])
def test_models_without_words_are_refused(lacks):
    data = made.world(n=60)
    task = build.task(made.config_of(), data)
    assert group_sensitivity.refused(data, task) == ""
    if lacks == "length":
        data = data._replace(train={"features": np.zeros((60, 3))})
    else:
        task = task._replace(**{lacks: None})
    assert "does not embed any" in group_sensitivity.refused(data, task)
