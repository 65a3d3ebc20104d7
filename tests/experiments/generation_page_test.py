"""The page of experiment `generation` from figures by hand: judged and not judged."""

import numpy as np
import pytest

from trustml import config as config_lib
from trustml.data import bold, subwords
from trustml.experiments import (
    generation,
    generation_measure,
    generation_page,
    generation_sections,
    text_model,
    text_scorers,
)
from trustml.models import generate
from trustml.report import gaps


def config_of(**changes):
    cfg = config_lib.default()
    cfg.experiment = "generation"
    cfg.privacy.enabled = False
    cfg.generation.replicates = 100
    cfg.generation.window, cfg.generation.max_new_tokens = 24, 8
    for name, value in changes.items():
        cfg.update_from_flattened_dict({name.replace("__", "."): value})
    return config_lib.from_config_dict(cfg)


def texts_of(domain, sizes, samples, shift=0.0):
    """Texts of one source: group -> number of entities, `samples` texts of each."""
    rng = np.random.default_rng(0)
    items = [
        bold.Item(domain, group, f"{group}{n}", "It", "")
        for group, size in sizes.items()
        for n in range(size)
        for _ in range(samples)
    ]
    score = rng.normal(0.5, 0.1, len(items)) + shift
    return generation_measure.Texts(items, ["word"] * len(items), {"toxicity": score})


def scored(config, domain, sizes, samples):
    parts = {"model": texts_of(domain, sizes, samples, 0.3)}
    parts["people"] = texts_of(domain, sizes, 1)
    return generation_measure.scored(config, parts, "toxicity")


def found_of(**domains):
    names = ("toxicity", "sentiment", "masked_sentiment")
    made = {domain: dict.fromkeys(names, one) for domain, one in domains.items()}
    return generation_measure.Found(None, [], {}, made, {}, {}, 0)


def test_a_source_is_flagged_by_itself():
    """13 prompts three times are 39 texts of the model and 13 of people."""
    config = config_of()
    one = scored(config, "race", {"a": 13, "b": 40, "c": 40}, 3)
    assert one.flags == {"model": ("", "", ""), "people": ("13 texts", "", "")}
    only = scored(config, "race", {"b": 40, "c": 40}, 3)
    assert one.apart["people"].largest.value == pytest.approx(
        abs(np.diff(one.means["people"].value[1:])[0])
    )
    assert one.apart["model"].largest.value == pytest.approx(
        np.ptp(one.means["model"].value)
    )
    assert only.flags == {"model": ("", ""), "people": ("", "")}
    # The group is no row of the comparison with people, and starred in tables.
    points = generation_page._against(found_of(race=one), 0.95).points
    assert "surely worse for 2 of 2 groups" in points[0]
    spec, scores = config.generation, {"toxicity": one}
    table = generation_sections._groups(spec, "race", scores, "")
    assert "toxicity: a *<" in table and "toxicity: b<" in table
    assert generation_measure._flag(spec, np.array([1, 0])) == "1 text, 1 entity"
    one = np.array([100, *[1] * 9])
    assert generation_measure._flag(spec, one) == "one entity with most texts"
    assert generation_measure._flag(spec, np.array([48, *[4] * 13])) == ""


def test_nothing_judged_is_not_nothing_beyond_chance():
    config = config_of()
    small = scored(config, "gender", {"a": 2, "b": 2}, 3)
    large = scored(config, "race", {"c": 40, "d": 40}, 3)
    card = generation_page._apart(found_of(gender=small, race=large))
    assert "Gender: not judged, fewer than two groups" in card.points[0]
    assert card.points[1] == "Race: nothing beyond chance."
    assert "In 0 of 3 pairs" in card.headline
    assert "in sentences of people, in 0 of 3." in card.headline
    card = generation_page._apart(found_of(gender=small))
    assert card.headline.startswith("No domain has two groups")
    table = generation_sections._apart("gender", {"toxicity": small}, "")
    assert "<td>no</td>" not in table and "<td>n/a</td>" in table
    assert "<td>\u2013</td>" in table and " / <" not in table
    table = generation_sections._apart("race", {"toxicity": large}, "")
    assert "<td>no</td>" in table


def test_texts_that_do_not_differ_have_no_interval():
    """All of one group score alike: no error is known, and none is made up."""
    config = config_of()
    parts = {
        name: texts_of("race", {"a": 20, "b": 20}, 2) for name in ("model", "people")
    }
    for part in parts.values():
        part.scores["toxicity"][:] = 0.25
    one = generation_measure.scored(config, parts, "toxicity")
    assert generation_sections._shown(one.means["model"], 0) == "0.250"
    table = generation_sections._apart("race", {"toxicity": one}, "")
    assert "chance unknown" in table and "<td>n/a</td>" in table
    card = generation_page._apart(found_of(race=one))
    assert card.points == ("Race: " + generation_page._NOT_JUDGED + ".",)
    assert "No group" in generation_page._against(found_of(race=one), 0.95).headline
    rows = [{"name": "x", "value": 0.2, "lo": 0.1, "hi": 0.3, "floor": np.nan}]
    svg = gaps.gaps([*rows, rows[0] | {"floor": 0.1}])
    assert "nan" not in svg and "by chance, up to" in svg


def test_chance_of_a_side_follows_the_level():
    one = scored(config_of(report__level=0.9), "race", {"c": 40, "d": 40}, 3)
    for level, said in ((0.95, "; 2.5% would"), (0.9, "; 5% would")):
        card = generation_page._against(found_of(race=one), level)
        assert said in card.headline


def test_prompts_left_out_are_named():
    codec = subwords.train(["the cat sat"], 300)
    decoder = generate.Decoder(codec.vocab_size, 24, None, None)
    model = text_model.TextModel("m", None, decoder, codec, 0, 1.0, 1.0, 0)
    config = config_of()
    items = [
        bold.Item("race", "Zorbs", "Ada_Long", "never seen " * 9, ""),
        bold.Item("race", "Zorbs", "Ada_Short", "the cat", ""),
    ]
    fitting, out = generation.fit(config, model, items)
    assert fitting == [1] and [one.item.entity for one in out] == ["Ada_Long"]
    found = found_of()._replace(left_out=out, room=16)
    (table,) = generation_sections._left_out(found).tables
    assert "Ada Long" in table and f"{out[0].pieces}" in table and "16" in table
    (said,) = generation_page._too_long(config.generation, found)
    assert "1 prompt that is longer than the 16 pieces" in said
    assert generation_page._too_long(config.generation, found_of()) == ()
    with pytest.raises(ValueError, match="no room for any of the 1 prompts"):
        generation.fit(config, model, items[:1])


def test_an_empty_text_is_about_nobody():
    one = text_scorers._by_words()
    np.testing.assert_array_equal(
        one.score(["", " ", "1980.", "he"], None), [np.nan, np.nan, 0.0, -1.0]
    )


def test_toxic_texts_are_shown_masked():
    items = [bold.Item("race", "Zorbs", "e", "They are", "")] * 3
    texts = ["stupid idiots", "kind people", "a chair"]
    scores = {"toxicity": np.array([0.9, 0.1, np.nan]), "sentiment": np.zeros(3)}
    source = generation_measure.Texts(items, texts, scores)
    found = generation_measure.Found(
        None, [], {"model": source}, {"race": {}}, {}, {}, 0
    )
    section = generation_sections._examples(config_of(), found)
    (made,) = section.tables
    assert "stupid" not in made and "s\u00b7\u00b7\u00b7\u00b7\u00b7" in made
    assert "kind people" in made and "n/a" in made
    bare = config_of(generation__mask=False)
    assert "stupid idiots" in generation_sections._examples(bare, found).tables[0]
