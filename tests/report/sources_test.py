"""Means by two sources: every figure is drawn and said."""

import math

from trustml.report import sources


def entry(value, half=0.1):
    return {"value": value, "lo": value - half, "hi": value + half}


def test_groups_are_drawn_by_both_sources():
    rows = [
        {"name": "one", "flagged": False, "model": entry(0.25), "people": entry(0.5)},
        {"name": "two *", "flagged": True, "model": entry(0.4), "people": entry(0.6)},
    ]
    options = {"label": "toxicity", "name": "t"}
    svg = sources.means(rows, ("model", "people"), band=(0.2, 0.3), **options)
    assert svg.startswith("<svg") and 'id="t-' in svg
    assert "one model 0.250, people 0.500; two * model 0.400, people 0.600" in svg
    assert "width by chance" in svg
    assert "width by chance" not in sources.means(rows, ("model", "people"), **options)
    # A flagged group alone has no colour of a judged one but in the legend.
    grey, judged = (
        sources.means([rows[1] | {"flagged": flag}], ("model", "people"), **options)
        for flag in (True, False)
    )
    for colour in ("var(--s1", "var(--s2"):
        assert 0 < grey.count(colour) < judged.count(colour)


def test_what_is_not_known_is_not_drawn():
    nothing = {"value": math.nan, "lo": math.nan, "hi": math.nan}
    row = {"name": "none", "flagged": False, "model": nothing, "people": nothing}
    options = {"label": "toxicity", "name": "t"}
    assert sources.means([row], ("model", "people"), **options) == ""
    half = row | {"people": entry(0.5)}
    svg = sources.means([half], ("model", "people"), **options)
    assert "people 0.500" in svg and "model" in svg and "nan" not in svg
    outside = (math.nan, math.nan)
    assert sources.means([half], ("model", "people"), band=outside, **options)
