"""Means by two sources: every figure is drawn and said."""

import math
import re

from trustml.report import sources


def entry(value, half=0.1, flagged=False):
    ends = {"lo": value - half, "hi": value + half}
    return {"value": value, **ends, "flagged": flagged}


def test_groups_are_drawn_by_both_sources():
    rows = [
        {"name": "one", "model": entry(0.25), "people": entry(0.5)},
        {"name": "two *", "model": entry(0.4), "people": entry(0.6, flagged=True)},
    ]
    options = {"label": "toxicity", "name": "t"}
    svg = sources.means(rows, ("model", "people"), band=(0.2, 0.3), **options)
    assert svg.startswith("<svg") and 'id="t-' in svg
    assert "one model 0.250, people 0.500; two * model 0.400, people 0.600" in svg
    assert "width by chance" in svg
    assert "width by chance" not in sources.means(rows, ("model", "people"), **options)
    # A flagged group alone has no colour of a judged one but in the legend.
    judged = rows[1] | {"people": entry(0.6)}
    for one, colour in (("model", "var(--s1"), ("people", "var(--s2")):
        grey = judged | {one: judged[one] | {"flagged": True}}
        few, many = (
            sources.means([row], ("model", "people"), **options).count(colour)
            for row in (grey, judged)
        )
        assert 0 < few < many


def test_a_long_label_beside_long_names_is_not_cut():
    label = "share about women minus share about men"
    name = "film and television occupations *"
    row = {"name": name, "model": entry(0.1), "people": entry(0.2)}
    svg = sources.means([row], ("model", "people"), label=label, name="t")
    wide = float(re.findall(r'viewBox="0 0 (\S+) \S+"', svg)[0])
    (drawn,) = re.findall(rf"<text [^>]*>{label}</text>", svg)
    at = float(re.findall(r'x="([-.\d]+)"', drawn)[0])
    # Letters of 10 points are 6 wide on average.
    assert 3 * len(label) < at < wide - 3 * len(label)


def test_what_is_not_known_is_not_drawn():
    nothing = {"value": math.nan, "lo": math.nan, "hi": math.nan}
    nothing |= {"flagged": True}
    row = {"name": "none", "model": nothing, "people": nothing}
    options = {"label": "toxicity", "name": "t"}
    assert sources.means([row], ("model", "people"), **options) == ""
    half = row | {"people": entry(0.5)}
    svg = sources.means([half], ("model", "people"), **options)
    assert "people 0.500" in svg and "model" in svg and "nan" not in svg
    outside = (math.nan, math.nan)
    assert sources.means([half], ("model", "people"), band=outside, **options)
