"""Experiment `generation`: pieces by hand, one whole run on small files, the page."""

import dataclasses
import gzip
import json
import re

import jax
import numpy as np
import pytest

from trustml import config as config_lib
from trustml.data import bold, comments
from trustml.experiments import (
    generation,
    generation_measure,
    text_model,
    text_scorers,
)
from trustml.fairness import polarity

_ENDINGS = {
    "American_actors": ("he sang a wonderful song.", "his lovely film."),
    "American_actresses": ("she was in an awful play.", "her dreadful book."),
    "Zorbs": ("they are stupid idiots.", "a table and a chair."),
    "Blips": ("they are friends.", "he is a chair."),
}
_DOMAIN = {"Zorbs": "race", "Blips": "race"}


def config_of(**changes):
    cfg = config_lib.default()
    cfg.experiment = "generation"
    cfg.privacy.enabled = False
    cfg.model.width, cfg.model.depth, cfg.model.heads = 16, 1, 2
    cfg.optimizer.learning_rate = 0.01
    cfg.train.steps, cfg.train.batch_size, cfg.train.num_devices = 4, 4, 1
    cfg.generation.corpora = ("wikitext2",)
    cfg.generation.domains = ("gender", "race")
    cfg.generation.vocabulary_size, cfg.generation.window = 300, 32
    cfg.generation.prompts, cfg.generation.samples = 6, 2
    cfg.generation.max_new_tokens, cfg.generation.batch_size = 8, 16
    cfg.generation.scorer_steps, cfg.generation.scorer_limit = 8, 60
    cfg.generation.replicates = 100
    cfg.generation.least, cfg.generation.least_entities = 8, 3
    for name, value in changes.items():
        cfg.update_from_flattened_dict({name.replace("__", "."): value})
    return config_lib.from_config_dict(cfg)


def pack(path, text):
    path.parent.mkdir(exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.write(text)


def tsv(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Small files in the layout of the published ones."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = [("domain", "group", "entity", "prompt", "wikipedia")]
    for group, endings in _ENDINGS.items():
        for n in range(8):
            # The last group has fewer entities than are asked for.
            name = f"Ada_{group[:1]}{n % (2 if group == 'Blips' else 8)}"
            start = f"In {1900 + n} {name.replace('_', ' ')} said that"
            end = endings[n % 2]
            domain = _DOMAIN.get(group, "gender")
            rows.append((domain, group, name, f"{start} ", f"{start} {end}"))
    rows[1] = (*rows[1][:4], "Not begun by its prompt.")
    pack(root / "bold" / "bold.tsv.gz", tsv(*rows))
    text = " He sang a song , and she wrote a lovely book . They are friends .\n"
    for part, times in (("test", 20), ("valid", 3)):
        pack(root / "wikitext2" / f"{part}.txt.gz", text * times)
    words = "he she his her sang song book lovely chair table are a".split()
    lines = [
        f"{w} {sign:g} {x:.3f} {y:.3f}"
        for w, sign, (x, y) in zip(
            words,
            [1, -1, 1, -1] + [0.0] * 8,
            rng.normal(size=(12, 2)),
            strict=True,
        )
    ]
    pack(root / "glove50_small" / "glove50_small.txt.gz", "\n".join(lines) + "\n")
    good, bad = "a wonderful lovely film", "an awful dreadful play"
    for part, times in (("train", 40), ("dev", 10), ("test", 10)):
        body = [("1", good), ("0", bad)] * times
        pack(root / "sst" / f"sst2_{part}.tsv.gz", tsv(("label", "text"), *body))
    said = [("friends of the chair", 0), ("you stupid idiots", 1)] * 60
    folder = root / "toxicity_bias"
    for name, label in (("wiki_comments", "label"), ("wiki_nonfuzzed", "toxic")):
        rows = [json.dumps({"text": text, label: y}) + "\n" for text, y in said]
        pack(folder / f"{name}.jsonl.gz", "".join(rows))
    (folder / "adjectives_people.txt").write_text("zorb\nblip\n")
    made = [
        (kind, f"{kind}{n}", f"{word} are {end} {n}")
        for n in range(6)
        for word in ("zorb", "blip")
        for kind, end in (("toxic", "idiots"), ("nontoxic", "friends"))
    ]
    rows = [(f"_ are {p.split()[2]}", k, p) for k, _, p in made]
    pack(folder / "templates_en.tsv.gz", tsv(("template", "toxicity", "phrase"), *rows))
    return root


@pytest.fixture
def small(root, monkeypatch):
    monkeypatch.setenv("TRUSTML_DATA", str(root))
    monkeypatch.setattr(comments, "_TRAIN", 80)
    return root


def test_a_run_from_end_to_end(small, tmp_path):
    ratings = tmp_path / "norms.tsv"
    ratings.write_text("word\tvalence\nlovely\t9\nawful\t1\nice cream\t7\n")
    config = config_of(generation__ratings=str(ratings))
    out = tmp_path / "out"
    with jax.numpy_dtype_promotion("standard"):  # optax
        page = generation.run(config, out)
    found = json.loads((out / "report.json").read_text())
    rows = [json.loads(line) for line in (out / "texts.jsonl").read_text().splitlines()]
    of_model = [row for row in rows if row["source"] == "model"]
    assert len(of_model) == found["texts"] == 4 * 6 * 2
    assert len(rows) - len(of_model) == found["prompts"] == 24
    # Every mean of the report, from the texts.
    for domain, scores in found["domains"].items():
        assert set(scores) >= {"sentiment", "masked_sentiment", "toxicity", "valence"}
        for name, one in scores.items():
            for source in ("model", "people"):
                for g, group in enumerate(one["groups"]):
                    mine = [
                        row["scores"][name]
                        for row in rows
                        if (row["source"], row["domain"], row["group"])
                        == (source, domain, group)
                    ]
                    mine = [x for x in mine if x is not None]
                    value = one["means"][source]["value"][g]
                    assert one["means"][source]["n"][g] == len(mine)
                    if not mine:
                        assert value is None
                        continue
                    assert value == pytest.approx(np.mean(mine))
                    both = (one["means"][s]["value"][g] for s in ("model", "people"))
                    if None not in (pair := tuple(both)):
                        assert one["minus"]["value"][g] == pytest.approx(
                            pair[0] - pair[1]
                        )
    # What is scored is what follows the prompt.
    ends = {end for pair in _ENDINGS.values() for end in pair}
    for row in rows:
        if row["source"] == "people":
            assert row["text"] in ends | {"Not begun by its prompt."}
        kinds = {"M": -1, "F": 1, "neutral": 0}
        assert row["scores"]["polarity, words"] == kinds[polarity.unigram(row["text"])]
    gender = found["domains"]["gender"]["polarity, words"]
    place = gender["groups"].index("American_actresses")
    assert gender["means"]["people"]["value"][place] == 1.0
    race = found["domains"]["race"]["sentiment"]
    assert race["flags"]["model"] == ["", "2 entities"]
    # Of people there are fewer texts, and fewer than are asked for.
    assert race["flags"]["people"] == ["6 texts", "6 texts, 2 entities"]
    assert race["apart"]["model"]["largest"]["value"] is None, "one group is left"
    gender_gap = found["domains"]["gender"]["sentiment"]["apart"]
    assert gender_gap["model"]["largest"]["value"] is not None
    assert gender_gap["people"]["largest"]["value"] is None, "flagged by itself"
    # The page says the same figures, and how good each scorer is.
    text = page.read_text()
    assert gender["means"]["people"]["lo"][place] is None, "all alike: no error seen"
    some = found["domains"]["gender"]["sentiment"]["means"]["people"]
    value, lo, hi = (some[field][place] for field in ("value", "lo", "hi"))
    assert f"{value:.3f} ({lo:.3f} to {hi:.3f})" in text
    for scorer in found["scorers"]:
        assert scorer["quality"].split(";")[0] in text
    assert "sentiment: Blips *" in text and "fewer than 8 texts or 3 entities" in text
    assert "Race: not judged" in text and "are scored whole" in text
    withheld = [one["name"] for one in found["scorers"] if one["withheld"]]
    assert withheld == ["polarity, vectors"] and "Polarity, vectors (withheld" in text
    assert "2 never match" not in text and "1 more never match" in text
    # Names in the texts are hidden, and counted.
    hidden = found["hidden"]["gender"]["people"]
    assert hidden["texts"] == 12 and hidden["touched"] == 0
    assert "gender: people" in text and "0 of 12" in text
    assert "regard" in text and "CC BY-SA" in text and "<script" not in text
    assert generation.run(config, out) == page  # finished already


def test_the_same_seed_says_the_same(small, tmp_path):
    """Whatever the batch and the other prompts; another seed says something else."""
    prompts, ids = ["In 1900 Ada", "They are", "She sang a song and"], [7, 3, 11]

    def said(config, prompts, ids, name, model=None):
        model = model or text_model.make(config, tmp_path / name)
        texts = text_model.continuations(config, model, prompts, ids, tmp_path / name)
        return texts, model

    with jax.numpy_dtype_promotion("standard"):  # optax
        config = config_of()
        one, model = said(config, prompts, ids, "one")
        again, _ = said(config, prompts, ids, "again")
        spec = dataclasses.replace(config.generation, batch_size=3)
        other = dataclasses.replace(config, generation=spec)
        few, _ = said(other, prompts[::-1], ids[::-1], "few", model)
        changed, _ = said(config_of(seed=1), prompts, ids, "changed", model)
    assert len(one) == 3 and all(len(texts) == 2 for texts in one)
    assert one == again == few[::-1]
    assert one != changed
    assert np.isfinite(model.perplexity) and model.perplexity < 300
    with pytest.raises(ValueError, match=r"generation.window=3000 must be below"):
        text_model.make(config_of(generation__window=3000), tmp_path / "long")


def test_prompts_are_chosen_by_group_and_seed(small):
    items = bold.read()
    config = config_of()
    chosen = generation.choose(config, items)
    assert chosen == generation.choose(config, items)
    assert chosen != generation.choose(config_of(seed=1), items)
    groups = [items[n].group for n in chosen]
    assert {group: groups.count(group) for group in groups} == dict.fromkeys(
        _ENDINGS, 6
    )
    only = generation.choose(config_of(generation__domains=("race",)), items)
    assert {items[n].domain for n in only} == {"race"}
    whole = generation.choose(config_of(generation__prompts=100), items)
    assert whole == sorted(whole) and len(whole) == 32


def test_the_prompt_is_taken_off():
    def item(prompt, text):
        return bold.Item("race", "g", "e", prompt, text)

    rest = generation_measure.rest
    assert rest(item("She is", "She is kind.")) == ("kind.", True)
    assert rest(item('"She is', "She is kind.")) == ("kind.", True)
    assert rest(item("He is", "She is kind.")) == ("She is kind.", False)


def test_wrong_settings_are_refused():
    for changes, said in (
        ({"domains": ("age",)}, "generation.domains='age' is not one of"),
        ({"corpora": ("squad",)}, "has nothing held out"),
        ({"top_p": 1.5}, "generation.top_p=1.5 must be at most 1"),
        ({"samples": 0}, "generation.samples=0 must be >= 1"),
        ({"max_new_tokens": 32}, "leaves no room for a prompt"),
    ):
        name, value = next(iter(changes.items()))
        with pytest.raises(ValueError, match=re.escape(said)):
            config_of(**{f"generation__{name}": value})


@pytest.mark.data
@pytest.mark.slow
def test_scorers_are_as_good_as_is_asked(data_dir, tmp_path):
    """Accuracy of sentiment >= .79, area of toxicity >= .94 on what is held out."""
    with jax.numpy_dtype_promotion("standard"):  # optax
        config = config_of(generation__scorer_steps=0, generation__scorer_limit=0)
        known = bold.read(str(data_dir), "gender")
        scorers = text_scorers.make(config, tmp_path, known)
    by_name = {one.name: one for one in scorers}
    assert by_name["sentiment"].figures["accuracy"].value >= 0.79
    assert by_name["sentiment"].figures["n"] == 872
    assert by_name["toxicity"].figures["auc"].value >= 0.94
    assert by_name["toxicity"].figures["n"] == 2180
    assert 0.5 < by_name["toxicity"].figures["bpsn"]["value"] < 0.9
    assert by_name["polarity, vectors"].withheld
