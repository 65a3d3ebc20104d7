"""The report of experiment `canary_extraction`: answers first, then figures and tables.

Everything here words and draws what `trustml.experiments.exposures` measured.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trustml import intervals, specs
from trustml.attacks.extraction import canary
from trustml.experiments.exposures import Found, Row, as_dict
from trustml.experiments.planted import Planted
from trustml.report import fmt, study, tables, words
from trustml.report import leaks as figures

ENOUGH = 16  # seeds below which the page describes and claims nothing
NAMES = {
    "undefended": "none",
    "dropout": "dropout",
    "early_stopping": "early stopping",
    "characters": "character embeddings",
    "combined": "all three",
    "dp_sgd": "DP-SGD",
}
LIMITS = (
    "The attacker has the parameters, the known words, the intent and the slots of the "
    "planted text; one who knows less finds less.",
    "An attack gives a lower limit of leakage: it shows that something leaks, never "
    "that nothing does.",
    "The figures describe these models, data and planted texts; codes made of other "
    "words, or tagged otherwise, may leak more or less.",
)


def write(
    workdir: str | os.PathLike,
    frame: Mapping[str, Any],
    config: specs.RunConfig,
    planted: Planted,
    found: Sequence[Found],
) -> pathlib.Path:
    """report.json and report.html of all sets of models.

    Args:
      workdir: of the run.
      frame: of `describe.frame`.
      config: of the run.
      planted: secrets of the first set.
      found: one entry a set of models, the undefended one first.

    Returns:
      The path of report.html.
    """
    return study.write(
        workdir,
        frame,
        cards(planted, found),
        _sections(planted, found),
        numbers={
            "canaries": [as_dict(one) for one in found],
            "codes": canary.num_codes(planted.pattern),
            "shared_ids": planted.shared,
        },
        methods=_methods(config, planted, found),
        limits=LIMITS,
    )


def line(row: Row) -> str:
    """One number of copies in a line of text."""
    parts = [
        f"{row.copies:4d} copies: {np.median(row.bits):5.2f} bits",
        *(f"{name} {one.whole} whole" for name, one in row.guesses.items()),
        f"intents {row.accuracy.value:.1%}",
        f"slot F1 {row.slot_f1.value:.1%}",
    ]
    return ", ".join(parts)


def cards(planted: Planted, found: Sequence[Found]) -> tuple[words.Card, ...]:
    """The answers: what is read out, does one copy do, what helps, is it memory?"""
    out = [_read_out(planted, found[0]), _once(found[0])]
    if len(found) > 1:
        out.append(_helped(found))
    return (*out, _controlled(found))


def _inserted(one: Found) -> list[Row]:
    return sorted((row for row in one.rows if row.copies), key=lambda row: row.copies)


def _control(one: Found) -> Row:
    return next(row for row in one.rows if not row.copies)


def _best(row: Row) -> str:
    return max(row.guesses, key=lambda name: row.guesses[name].whole)


def _few(one: Found) -> tuple[str, ...]:
    if one.seeds >= ENOUGH:
        return ()
    seeds = "one seed" if one.seeds == 1 else f"{one.seeds} seeds"
    return (f"Of {seeds} only, which is too few for a claim.",)


def _read_out(planted: Planted, one: Found) -> words.Card:
    row = _inserted(one)[-1]
    name = _best(row)
    best, size = row.guesses[name], len(planted.pattern.positions)
    codes = canary.num_codes(planted.pattern)
    points = [
        f"The {name} attack finds the whole code of {size} words in {best.whole} of "
        f"{one.seeds} seeds, {_share(best.share)}; chance is 1 in {codes:,}.",
        f"Of the words of a code {_share(best.words)} are right; guessing gives "
        f"{fmt.percent(1 / planted.pattern.alphabet.shape[1])}, and without the "
        f"secret the same attack {_share(_control(one).guesses[name].words)}.",
    ]
    text = f"from {row.copies} {_times(row.copies)} of the text without a defence"
    headline = (
        f"Yes: {best.whole} of {one.seeds} secrets were read out whole {text}."
        if best.whole
        else f"No secret was read out whole {text}."
    )
    question = "Can a secret be read out of the model?"
    tone = "warn" if best.whole else "plain"
    return words.Card(question, headline, (*points, *_few(one)), tone=tone)


def _once(one: Found) -> words.Card:
    row = _inserted(one)[0]
    found = row.summary
    assert found is not None
    leaks = found.delta_lo > 0
    copies = f"{row.copies} {_times(row.copies)}"
    headline = (
        f"{fmt.capital(copies)} of the text raises the exposure of its secret."
        if leaks
        else f"No leak was shown of {copies} of the text."
    )
    points = (
        f"The median secret has {found.inserted_median:.1f} bits of exposure, of at "
        f"most {found.ceiling:.1f}; that of models without it "
        f"{found.absent_median:.1f}, and of another code {found.decoy_median:.1f}.",
        f"Seed by seed the secret gains {_bits(found)} bits over its control "
        f"(median, {100 * found.level:g}% interval).",
    )
    question = "Is a text that occurs rarely safe?"
    tone = "warn" if leaks else "plain"
    return words.Card(question, headline, (*points, *_few(one)), tone=tone)


def _helped(found: Sequence[Found]) -> words.Card:
    points, held, near = [], [], []
    for one in found[1:]:
        row = _inserted(one)[-1]
        summary = row.summary
        assert summary is not None
        points.append(
            f"{_name(one)}: {_bits(summary)} bits over its control at {row.copies} "
            f"{_times(row.copies)}, with intents {_share(row.accuracy)} and slot F1 "
            f"{_share(row.slot_f1)} right."
        )
        if summary.delta_hi <= 1:
            held.append(_name(one))
        elif summary.delta_median <= 1:
            seeds = f"{one.seeds} seed" + "s" * (one.seeds > 1)
            near.append(f"{_name(one)} ({seeds})")
    plain = {row.copies: row for row in found[0].rows}
    row = plain.get(_inserted(found[1])[-1].copies, _inserted(found[0])[-1])
    points.append(
        f"Without a defence: {_bits(row.summary)} bits at {row.copies} "
        f"{_times(row.copies)}, intents {_share(row.accuracy)}, slot F1 "
        f"{_share(row.slot_f1)}."
    )
    if held:
        headline = f"Within 1 bit of the control: {fmt.listed(held)}."
    elif near:
        headline = "None was shown to bring the exposure near its control."
    else:
        headline = "None brought the exposure to within 1 bit of its control."
    if near:
        points.append(
            f"The median is within 1 bit of the control, but not its interval, for "
            f"{fmt.listed(near)}: too few seeds to say that it holds."
        )
    fewest = min(found[1:], key=lambda one: one.seeds)
    return words.Card(
        "Which defence holds, and at what price?", headline, (*points, *_few(fewest))
    )


def _controlled(found: Sequence[Found]) -> words.Card:
    first = found[0]
    bits = np.median(_control(first).bits)
    strange = first.uniform_p < 1e-3
    points = (
        f"Models without the secret rank it at {bits:.1f} bits in the median; a rank "
        "drawn at random has 1 bit.",
        f"Uniform p-values of the control: Kolmogorov-Smirnov p = "
        f"{first.uniform_p:.2g}.",
    )
    headline = (
        "Not alone: models without the secret rank it strangely too."
        if strange
        else "Nothing else was found to rank the secret."
    )
    tone = "warn" if strange else "good"
    question = "Is it memory that the attack sees?"
    return words.Card(question, headline, points, tone=tone)


def _sections(planted: Planted, found: Sequence[Found]) -> list[study.Section]:
    ceiling = float(np.log2(canary.num_codes(planted.pattern)))
    sections = []
    first = found[0]
    kind = "extrapolated exposure" if first.estimated else "exposure"
    strips = figures.strips(
        [_strip(f"{row.copies} copies", row) for row in first.rows],
        f"{kind} in bits, one point a seed",
        ceiling=ceiling,
        null=1.0,
        name="exposure-copies",
    )
    caption = "The line is the median. 0 copies are the control."
    drawn = (("Exposure against copies", strips, caption),)
    sections.append(
        study.Section(
            "Without a defence",
            figures=drawn,
            tables=(_exposures([first]), _guesses([first]), _extrapolated([first])),
        )
    )
    if len(found) > 1:
        rows = [
            _strip(f"{NAMES[one.name]}, {row.copies}", row)
            for one in found[1:]
            for row in one.rows
        ]
        strips = figures.strips(
            rows,
            f"{kind} in bits, one point a seed",
            ceiling=ceiling,
            null=1.0,
            name="exposure-defences",
        )
        drawn = (("Exposure of defended models, by copies", strips, caption),)
        text = (
            "The promise of differential privacy is for one example. A text that "
            "occurs k times is k examples, whose epsilon is about k times as large.",
        )
        private = any(one.epsilon is not None for one in found)
        sections.append(
            study.Section(
                "With defences",
                text=text if private else (),
                figures=drawn,
                tables=(_exposures(found), _guesses(found)),
            )
        )
    return sections


def _exposures(found: Sequence[Found]) -> str:
    rows = []
    for one in found:
        for row in one.rows:
            s = row.summary
            bits = f"{np.median(row.bits):.1f}"
            rest = ("\u2013",) * 4
            if s is not None:
                rest = (
                    f"{s.decoy_median:.1f}",
                    _bits(s),
                    fmt.scientific(s.p_value),
                    fmt.scientific(s.control_p_value),
                )
            rows.append(
                (
                    _name(one),
                    str(row.copies),
                    str(one.seeds),
                    bits,
                    *rest,
                    _share(row.accuracy),
                    _share(row.slot_f1),
                )
            )
    head = (
        *("defence", "copies", "seeds", "median bits", "decoy", "over the control"),
        *("p", "p of controls", "intents right", "slot F1"),
    )
    note = (
        "p: of the secret's rank under no memory, all seeds together (Fisher). Medians "
        "with intervals of order statistics; ∞ where there are too few seeds for one."
    )
    return tables.table(head, rows, "Exposure, and what the model is worth", note)


def _guesses(found: Sequence[Found]) -> str:
    rows = [
        (
            _name(one),
            str(row.copies),
            attack,
            _share(guess.words),
            _number(guess.hamming),
            f"{guess.whole} of {one.seeds}",
            f"{fmt.percent(guess.share.lo)}–{fmt.percent(guess.share.hi)}",
        )
        for one in found
        for row in one.rows
        for attack, guess in row.guesses.items()
    ]
    head = (
        *("defence", "copies", "attack", "words right", "words wrong"),
        *("whole codes", "exact interval"),
    )
    return tables.folded(head, rows, "Codes that were guessed")


def _extrapolated(found: Sequence[Found]) -> str:
    rows = []
    for one in found:
        for row in one.rows:
            gaps = np.asarray(row.gaps)
            gaps = gaps[np.isfinite(gaps)]
            if gaps.size:
                close = int(np.sum(np.abs(gaps) <= 1))
                rows.append(
                    (
                        str(row.copies),
                        fmt.signed(float(np.median(gaps)), 2),
                        f"{np.abs(gaps).max():.2f}",
                        f"{close} of {gaps.size}",
                    )
                )
    head = ("copies", "median of the difference", "largest", "within 1 bit")
    inside = any(one.estimated for one in found)
    of = (
        "codes that end otherwise, the beginning being known" if inside else "all codes"
    )
    return tables.table(head, rows, f"Extrapolated minus exact exposure, of {of}, bits")


def _methods(config, planted, found: Sequence[Found]) -> tuple[str, ...]:
    spec, most = config.canary, max(config.canary.copies)
    known = " ".join(spec.words)
    shared = ""
    if planted.shared:
        shared = (
            f" Words of codes that share their id with other words of the data: "
            f"{fmt.listed(planted.shared)}; that moves the ranks of the control alike."
        )
    out = [
        f"The text is “{known}” and {spec.length} words drawn from "
        f"{len(spec.alphabet)}, with an intent and a type of slot drawn for every "
        f"seed.{shared}",
        f"A model with k copies has {most} − k of an ordinary row in the same places "
        "of its training set. The models of a seed share initialization and, without "
        "privacy, the order of their batches.",
        "Codes are scored by the loss of training, of intent and slots. Exposure is "
        "log2 of the number of codes less log2 of the secret's rank; ties count half.",
    ]
    if any(one.estimated for one in found):
        out.append(
            f"Too many codes to score all: exposure is extrapolated from "
            f"{spec.candidates} random ones by a skew-normal, and a secret read out "
            "whole is one that a search found."
        )
    for one in found:
        if one.epsilon is not None and one.delta is not None:
            out.append(
                f"DP-SGD: ε = {one.epsilon:.3g}, δ = {fmt.scientific(one.delta)} for "
                "each model, its noise and batches its own."
            )
    return tuple(out)


def _strip(name: str, row: Row) -> dict[str, Any]:
    return {"name": name, "values": row.bits}


def _name(one: Found) -> str:
    name = fmt.capital(NAMES[one.name])
    return name if one.epsilon is None else f"{name}, ε = {one.epsilon:.3g}"


def _times(copies: int) -> str:
    return "copy" if copies == 1 else "copies"


def _share(value: intervals.Interval) -> str:
    ends = (value.lo, value.hi)
    return figures.share(
        value.value, *(ends if np.isfinite(ends).all() else (None,) * 2)
    )


def _number(value: intervals.Interval) -> str:
    if not np.isfinite([value.lo, value.hi]).all():
        return f"{value.value:.2f}"
    return f"{value.value:.2f} [{value.lo:.2f}, {value.hi:.2f}]"


def _bits(found) -> str:
    ends = [
        fmt.signed(end) if np.isfinite(end) else ("∞" if end > 0 else "−∞")
        for end in (found.delta_lo, found.delta_hi)
    ]
    return f"{fmt.signed(found.delta_median)} [{ends[0]}, {ends[1]}]"
