"""Experiment `prediction_sensitivity`: data with a leak, measures, page."""

import json

import jax
import numpy as np
import pytest

from trustml import config as config_lib
from trustml.data import bios
from trustml.experiments import (
    leak_models,
    leak_worlds,
    prediction_sensitivity,
    sensitivity_page,
)
from trustml.fairness import polarity


def config(**changed):
    cfg = config_lib.default()
    cfg.experiment = "prediction_sensitivity"
    cfg.privacy.enabled = False
    cfg.model.width = 16
    cfg.model.hidden = (24,)
    cfg.optimizer.learning_rate = 0.02
    cfg.train.steps = 200
    cfg.train.batch_size = 64
    cfg.leak.leaks = (0.0, 0.3, 0.6, 1.0)
    cfg.leak.seeds = 2
    cfg.leak.examples = 800
    cfg.leak.tested = 100
    for name, value in changed.items():
        section, _, field = name.partition("__")
        setattr(getattr(cfg, section), field, value)
    return config_lib.from_config_dict(cfg)


@pytest.mark.parametrize("cue", bios.CUES)
@pytest.mark.parametrize("leak", [0.0, 0.4, 1.0])
def test_biographies_leak_as_much_as_was_asked(cue, leak):
    rows = bios.make(0, 4000, leak=leak, cue=cue)
    by_gender = rows["named"] // 2 * 2 + 1 - rows["gender"]
    # The label is the gendered one with probability (1 + leak) / 2; 5 deviations.
    share = np.mean(rows["label"] == by_gender)
    assert abs(share - (1 + leak) / 2) < 5 * 0.5 / np.sqrt(4000)
    assert np.all(rows["label"] // 2 == rows["named"] // 2)
    texts = [set(bios.words(row)) for row in rows["tokens"][:200]]
    explicit = [bool(text & set(bios.EXPLICIT)) for text in texts]
    assert all(explicit) if cue == "explicit" else not any(explicit)
    for text, gender in zip(texts, rows["gender"], strict=False):
        sides = [set(bios.IMPLICIT[g]) | {bios.EXPLICIT[g]} for g in (0, 1)]
        assert text & sides[gender] and not text & sides[1 - gender]
    assert rows["tokens"].min() > 0 and rows["tokens"].shape == (4000, bios.LENGTH)


def test_measures_see_what_was_planted():
    with jax.numpy_dtype_promotion("standard"):  # optax
        found = leak_models.measure(config(), "implicit")
    displaced = found.value["displacement"].mean(axis=0)
    assert np.all(np.diff(displaced) > 0.03)
    plain = found.value["abs"].mean(axis=0)
    assert plain[-1] < 0.2 * plain.max()  # certain, and most unfair
    assert np.all(found.value["counterfactual"] == 0) and np.all(found.coverage == 0)
    # What the classifier could reach: 1 - leak / 2 below a half, leak above.
    assert found.accuracy[:, 0].min() > 0.95 and found.accuracy[:, -1].min() > 0.95
    assert found.parts.shape == (4, bios.LENGTH) and found.status.min() > 0.95


def test_a_study_from_end_to_end(tmp_path):
    with jax.numpy_dtype_promotion("standard"):  # optax
        page = prediction_sensitivity.run(config(), tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    explicit = found["correlations"]["explicit"]
    assert explicit["displacement"]["value"] > 0.9 < explicit["counterfactual"]["value"]
    assert found["correlations"]["implicit"]["counterfactual"]["constant"]
    text = page.read_text()
    assert "Which measure sees a planted leak?" in text and "<script" not in text
    assert "Blind: counterfactual gap (implicit cues)." in text
    assert prediction_sensitivity.run(config(), tmp_path) == page


def test_wrong_leaks_are_refused():
    with pytest.raises(ValueError, match=r"leak.leaks=\(0.0, 2.0, 3.0\) must lie in"):
        config(leak__leaks=(0.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="must be 3 or more, ascending"):
        config(leak__leaks=(0.0, 1.0))
    with pytest.raises(ValueError, match="leak=1.5 must lie in"):
        bios.make(0, 10, leak=1.5)


@pytest.mark.data
def test_posts_leak_as_much_as_was_asked(data_dir):
    """Label is gender or what people judged; learnt from and tested on are apart."""
    made = {cue: leak_worlds.posts(cue, 0, str(data_dir)) for cue in leak_worlds.CUES}
    for cue, world in made.items():
        known, test = (world.draw(0, part, 1000, 0.5, 3) for part in (0, 1))
        plain = world.draw(0, 0, 1000, 0.0, 3)
        whole = world.draw(0, 0, 1000, 1.0, 3)
        np.testing.assert_array_equal(whole["label"], whole["gender"])
        apart = plain["label"] != plain["gender"]
        # Half of those where it matters; five deviations.
        share = np.mean((known["label"] == known["gender"])[apart])
        assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(apart.sum())
        texts = {tuple(row) for row in known["tokens"]}
        repeated = np.mean([tuple(row) in texts for row in test["tokens"]])
        assert repeated < 0.01  # posts themselves repeat a little
        again = world.draw(0, 1, 1000, 0.5, 7)
        np.testing.assert_array_equal(again["tokens"], test["tokens"])
        swapped = np.isin(test["tokens"], world.pairs).any(axis=1).mean()
        assert (swapped == 0) if cue == "implicit" else (swapped > 0.8)
        # What people wrote is shown by first letters, but for words of gender.
        words = world.words(test["tokens"][0])
        assert len(words) == test["length"][0]
        shown = {word for word in words if "\u00b7" not in word and len(word) > 1}
        assert shown <= (polarity.MALE | polarity.FEMALE)
    with pytest.raises(ValueError, match="leak.tested=5000 exceeds the"):
        made["explicit"].draw(0, 1, 5000, 0.5)


def test_posts_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="HateXplain"):
        leak_worlds.posts("explicit", 0, str(tmp_path))


@pytest.mark.parametrize(("seeds", "said"), [(1, "Of one seed"), (2, "t-intervals")])
def test_the_caption_of_one_seed_promises_no_interval(seeds, said):
    rows = np.linspace(0.1, 1.0, 4 * seeds).reshape(seeds, 4)
    one = leak_models.Measured(
        **{name: rows for name in leak_models.Measured._fields}
        | {"value": dict.fromkeys(leak_models.FORMS, rows)}
    )
    ((_, _, caption),) = sensitivity_page._curves(config(), {"implicit": one}).figures
    assert said in caption
    assert ("interval" in caption) == (seeds > 1)
