"""The page of a study, and the figures of leakage."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from trustml.report import leaks, study, tables, words

RNG = np.random.default_rng(0)
FIGURES = {
    "roc": leaks.roc(
        [
            {
                "name": "LiRA <online>",
                "fpr": [0, 0.01, 1],
                "tpr": [0, 0.3, 1],
                "lo": [0, 0.2, 1],
                "hi": [0.1, 0.4, 1],
                "floor": 0.01,
            },
            {"name": "loss", "fpr": [0, 1], "tpr": [0, 1], "floor": 0.01},
        ]
    ),
    "histograms": leaks.histograms(RNG.normal(1, 1, 50), [np.nan, 0, -1], "score"),
    "strips": leaks.strips(
        [{"name": "1 copy", "values": [3.0, 4.0]}, {"name": "none", "values": [1.0]}],
        "exposure, bits",
        ceiling=13.3,
        null=1.0,
    ),
    "epsilon": leaks.against_epsilon(
        [{"name": "LiRA", "points": [{"epsilon": e, "value": e / 2} for e in (1, 8)]}],
        "audited",
        chance=0.5,
        identity=True,
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_whole_and_say_what_they_show(name):
    root = ElementTree.fromstring(FIGURES[name])
    assert root.get("aria-label").endswith(".")
    assert "LiRA &lt;online&gt;" in FIGURES["roc"]


def test_figures_without_data_are_empty():
    assert (
        leaks.roc([]) == leaks.strips([], "x") == leaks.against_epsilon([], "y") == ""
    )
    assert leaks.histograms([np.nan], [1.0], "score") == ""


def test_the_page_escapes_and_keeps_its_numbers(tmp_path):
    card = words.Card("What leaks?", "<b>LiRA</b>", ("one",))
    part = study.Section(
        "Attacks",
        ("A sentence.",),
        (("Members found", FIGURES["roc"], "caption"),),
        (tables.table(("attack", "AUC"), [("<loss>", "0.5")], "All"),),
    )
    frame = {"title": "A <study>", "created": "2026-01-01"}
    numbers = {"auc": {"loss": np.float32(0.5), "bad": float("nan")}}
    path = study.write(tmp_path, frame, (card,), (part,), numbers=numbers, limits=["x"])
    page = path.read_text()
    assert (
        "A &lt;study&gt;" in page and "&lt;b&gt;LiRA" in page and "<script" not in page
    )
    assert "What this does not show" in page
    kept = json.loads((tmp_path / "report.json").read_text())
    assert kept["auc"] == {"loss": 0.5, "bad": None} and kept["limits"] == ["x"]
    with pytest.raises(ValueError, match=r"\['title'\]"):
        study.write(tmp_path, frame, (), (), numbers={"title": 1})


def test_the_footer_has_the_level_of_the_run():
    for level, said in ((0.8, "80%"), (0.975, "97.5%"), (0.95, "95%"), (None, "95%")):
        page = study.render({"title": "t", "level": level}, (), ())
        assert f"In brackets stand {said} intervals, but where another" in page


def test_intervals_in_cells():
    assert leaks.heading(0.5, 0.4, 0.6) == "0.500 [0.400, 0.600]"
    assert leaks.heading(None, None, None) == leaks.share(float("nan"), 0, 1) == "–"
    assert leaks.share(0.121, 0.11, 0.133) == "12.1% [11.0%, 13.3%]"
