"""The report of experiment `prediction_sensitivity`: answers, curves, texts.

Everything here words and draws what `trustml.experiments.leak_models` measured.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trustml import intervals, specs
from trustml.experiments import leak_worlds
from trustml.experiments.leak_models import FORMS, Measured
from trustml.report import drawing, fmt, study, tables, words

NAMES = {
    "abs": "plain |J|v",
    "share": "share of path-integrated",
    "integrated": "path-integrated",
    "displacement": "displacement",
    "counterfactual": "counterfactual gap",
}
METHODS = (
    "The protected status model learns gender from the same texts; what it attributes "
    "to a word, integrated along a path, is how much that word reveals.",
    "Correlations are Spearman's between a measure's mean over test texts and the "
    "planted leak, one for each seed; in brackets, where there are several, the "
    "t-interval over seeds, cut to [-1, 1].",
    "The counterfactual exchanges words such as he and she. Texts without any have "
    "none, and count as 0; coverage is the share of texts that have one.",
)
LIMITS = (
    "Where the protected status model is wrong more often than here, sensitivity by it "
    "says less.",
)


def write(
    workdir: str | os.PathLike,
    frame: Mapping[str, Any],
    config: specs.RunConfig,
    found: Mapping[str, Measured],
    correlations: Mapping[str, Mapping[str, Mapping[str, Any]]],
    worlds: Sequence[leak_worlds.World],
) -> tuple[pathlib.Path, list[str]]:
    """report.json and report.html.

    Args:
      workdir: of the study.
      frame: title, machine, data, task.
      config: of the study.
      found: cue -> what was measured.
      correlations: cue -> form -> value, lo, hi, constant.
      worlds: of every cue, where the texts come from.

    Returns:
      The path of report.html, and the headlines of its cards.
    """
    cards = (_sees(correlations, found), _saturates(config, found))
    sections = [
        _curves(config, found),
        _table(correlations, found),
        _text(config, found),
    ]
    numbers = {
        "correlations": correlations,
        "leaks": config.leak.leaks,
        "measured": {
            cue: {
                "value": {form: one.value[form].tolist() for form in FORMS},
                "accuracy": one.accuracy.tolist(),
                "certainty": one.certainty.tolist(),
                "status_accuracy": one.status.tolist(),
                "coverage": one.coverage.tolist(),
            }
            for cue, one in found.items()
        },
    }
    path = study.write(
        workdir,
        frame,
        cards,
        sections,
        numbers=numbers,
        methods=tuple(dict.fromkeys(x for w in worlds for x in w.methods)) + METHODS,
        limits=tuple(dict.fromkeys(x for w in worlds for x in w.limits)) + LIMITS,
    )
    return path, [f"{card.question} {card.headline}" for card in cards]


def _correlation(one: Mapping[str, Any]) -> str:
    if one["constant"]:
        return "none: it is the same at every leak"
    if math.isnan(one["lo"]):
        return f"{one['value']:.2f} (one seed)"
    return f"{one['value']:.2f} [{one['lo']:.2f}, {one['hi']:.2f}]"


def _sees(correlations, found) -> words.Card:
    points = [
        f"{fmt.capital(cue)} cues: "
        + "; ".join(f"{NAMES[f]} {_correlation(of[f])}" for f in FORMS)
        + "."
        for cue, of in correlations.items()
    ]
    seen = [
        NAMES[form]
        for form in FORMS
        if all(
            not of[form]["constant"] and of[form]["value"] >= 0.9
            for of in correlations.values()
        )
    ]
    blind = [
        f"{NAMES[form]} ({cue} cues)"
        for cue, of in correlations.items()
        for form in FORMS
        if of[form]["constant"]
    ]
    headline = (
        f"Correlated at 0.9 or more with every kind of cue: {fmt.listed(seen)}."
        if seen
        else "No measure is correlated at 0.9 or more with every kind of cue."
    )
    if blind:
        headline += f" Blind: {fmt.listed(blind)}."
    for cue, one in found.items():
        points.append(
            f"{fmt.capital(cue)} cues: the status model is right for "
            f"{fmt.percent(float(one.status.mean()))} of the texts; "
            f"{fmt.percent(float(one.coverage.mean()))} have a counterfactual."
        )
    return words.Card("Which measure sees a planted leak?", headline, tuple(points))


def _saturates(config, found) -> words.Card:
    points = []
    for cue, one in found.items():
        curve, sure = one.value["abs"].mean(axis=0), one.certainty.mean(axis=0)
        top = int(np.argmax(curve))
        points.append(
            f"{fmt.capital(cue)} cues: plain |J|v is largest, {curve[top]:.2g}, at a "
            f"leak of {config.leak.leaks[top]:g} and {curve[-1]:.2g} at "
            f"{config.leak.leaks[-1]:g}, where the predicted class has "
            f"{fmt.percent(float(sure[-1]))} on average."
        )
    falls = all(
        one.value["abs"].mean(axis=0).argmax() < len(config.leak.leaks) - 1
        for one in found.values()
    )
    headline = (
        "No: it rises, then falls while the leak still grows."
        if falls
        else "It did not fall in this run."
    )
    question = "Does the plain form grow with the leak?"
    return words.Card(question, headline, tuple(points), tone="warn" if falls else "")


def _curves(config, found) -> study.Section:
    leaks = np.array(config.leak.leaks)
    figures = []
    for cue, one in found.items():

        def draw(fig, one=one):
            ax = fig.add_subplot()
            for n, form in enumerate(FORMS):
                if form == "integrated":
                    continue
                rows = one.value[form]
                top = max(rows.mean(axis=0).max(), 1e-12)
                of_seeds = [
                    intervals.mean(column / top, config.report.level)
                    for column in rows.T
                ]
                value, lo, hi = np.array(of_seeds).T
                look = {
                    "color": drawing.SERIES[n],
                    "marker": drawing.MARKERS[n],
                    "linestyle": drawing.DASHES[n],
                }
                ax.plot(leaks, value, label=NAMES[form], **look)
                if not np.isnan(lo).any():
                    ax.fill_between(leaks, lo, hi, color=look["color"], alpha=0.15)
            ax.set_xlabel("planted leak")
            ax.set_ylabel("measure over its largest mean")
            ax.set_ylim(bottom=0)
            fig.legend(
                *ax.get_legend_handles_labels(), loc="outside upper left", ncols=2
            )

        alt = f"Measures against the planted leak, {cue} cues."
        several = len(one.certainty) > 1
        caption = (
            "Means over seeds with t-intervals" if several else "Of one seed"
        ) + ", each measure over its largest mean: only the shape counts."
        svg = drawing.svg(f"leak-{cue}", alt, draw, height=3.4)
        figures.append((f"{fmt.capital(cue)} cues", svg, caption))
    return study.Section("Measures against the leak", figures=tuple(figures))


def _table(correlations, found) -> study.Section:
    head = ("measure", *(f"{cue} cues" for cue in correlations))
    rows = [
        (NAMES[form], *(_correlation(of[form]) for of in correlations.values()))
        for form in FORMS
    ]
    made = tables.table(head, rows, "Spearman's correlation with the planted leak")
    return study.Section("Correlations", tables=(made,))


def _text(config, found) -> study.Section:
    """One text of each cue at a middle leak, words as dark as they count."""
    at = len(config.leak.leaks) // 2
    figures = []
    for cue, one in found.items():
        parts = one.parts[at] / max(one.parts[at].max(), 1e-12)

        def draw(fig, one=one, parts=parts):
            ax = fig.add_subplot()
            ax.set_axis_off()
            x, y = 0.0, 1
            for word, part in zip(one.words, parts, strict=True):
                width = 0.021 * len(word) + 0.035
                if x + width > 1:
                    x, y = 0.0, y - 1
                ax.text(
                    x + 0.01,
                    y,
                    word,
                    va="center",
                    bbox={
                        "facecolor": drawing.SERIES[1],
                        "alpha": float(0.75 * part),
                        "edgecolor": "none",
                        "pad": 2.5,
                    },
                )
                x += width
            ax.set_xlim(0, 1)
            ax.set_ylim(y - 0.6, 1.6)

        listed = ", ".join(
            f"{word} {part:.2f}" for word, part in zip(one.words, parts, strict=True)
        )
        svg = drawing.svg(f"text-{cue}", f"Words and their parts: {listed}.", draw, 1.3)
        caption = (
            f"A text with {cue} cues, leak {config.leak.leaks[at]:g}: the darker a "
            "word, the larger its part of the path-integrated sensitivity."
        )
        figures.append((f"Words that count, {cue} cues", svg, caption))
    return study.Section("Where in a text", figures=tuple(figures))
