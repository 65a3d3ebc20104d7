"""The four answers of the first screen, in plain words, composed from the figures.

Rules of the wording: every figure with its interval and its baseline; the attack and the
accountant are named; "no leak detected by this attack" is never "no leak"; reproducible
noise is said to be no secret; what was not measured is said to be not measured.

Example::

    from trustml.report import words

    for card in words.cards(report):
        print(card.question, card.headline, *card.points, sep='\\n  ')
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trustml.report import schema

RELATIONS = {
    "add_or_remove_one": "adding or removing one example",
    "replace_one": "replacing one example by another",
    "replace_special": "replacing one example by an empty one",
}
ACCOUNTANTS = {
    "pld": "privacy loss distributions (PLD)",
    "rdp": "Rényi differential privacy (RDP)",
}


class Card(NamedTuple):
    """One question of the first screen.

    Attributes:
      question: as asked.
      headline: the answer in one sentence.
      points: the figures behind it, one sentence each.
      tone: 'good', 'warn' or 'plain'; colours the edge, never the only signal.
    """

    question: str
    headline: str
    points: tuple[str, ...]
    tone: str


def cards(report: Mapping[str, Any]) -> tuple[Card, Card, Card, Card]:
    """The four cards of a checked report."""
    runs = report["runs"]
    return promised(runs), leaks(runs), costs(runs), served_worse(runs)


def promised(runs: Sequence[Mapping[str, Any]]) -> Card:
    """What the formal guarantee says, and what it leans on."""
    question, names = "What is promised?", schema.labels(runs)
    private = [run for run in runs if schema.is_private(run)]
    if not private:
        return Card(
            question,
            "Nothing: there is no formal privacy promise.",
            (
                "The model was trained without privacy, so nothing limits what it may "
                "reveal about a training example.",
            ),
            "warn",
        )
    unit = schema.get(private[0], "privacy_unit", default="one training example")
    points = []
    for run in private:
        eps, delta = schema.epsilon(run), schema.number(run, "delta") or 0.0
        if eps is None:
            points.append(f"{names[run['name']]}: the ε that was spent is not stated.")
            continue
        limit = detectable(0.01, eps, delta)
        spent = f"ε spent {eps:.3g}, δ = {scientific(delta)}"
        text = (
            f"{names[run['name']]} ({spent}): a test of who was in the training data "
            f"that wrongly accuses 1% finds at most {percent_up(limit)} of those who "
            "were, whatever the method; "
        )
        text += (
            "taken alone, that rules out almost nothing."
            if limit > 0.5
            else "blind guessing finds 1%."
        )
        points.append(text)
    if len(private) < len(runs):
        points.append("No privacy: no promise at all.")
    points.append(_accounting(private, names))
    secret = [run.get("noise_secret") for run in private]
    if all(secret):
        points.append(
            "The noise came from a secret key of the operating system that was not kept "
            "in this report."
        )
        tone = "good"
    else:
        points.append(
            "The noise is reproducible, not secret: it follows from a seed, and against "
            "anyone who knows the seed the promise does not hold. Train with a secret "
            "seed before giving a model away."
            if any(s is False for s in secret)
            else "Whether the noise was secret is not stated."
        )
        tone = "warn"
    headline = f"Differential privacy for {unit}, with " + _listed(
        [names[run["name"]] for run in private]
    )
    return Card(question, headline + ".", tuple(points), tone)


def leaks(runs: Sequence[Mapping[str, Any]]) -> Card:
    """What the membership attack found, run by run."""
    question, names = "What leaks?", schema.labels(runs)
    attacked = [run for run in runs if schema.number(run, "membership", "auc")]
    if not attacked:
        return Card(
            question,
            "Not measured: no attack was run.",
            ("That is no sign that nothing leaks.",),
            "plain",
        )
    found, points = [], []
    for run in attacked:
        result, name = run["membership"], names[run["name"]]
        if leak_detected(result):
            found.append(name)
        lo, hi = interval_of(result)
        below = hi is not None and hi < 0.5
        verdict = (
            "leak detected"
            if leak_detected(result)
            else "no leak detected; below chance, by accident or because members and "
            "non-members differ otherwise"
            if below
            else "no leak detected by this attack"
        )
        text = f"{_capital(name)}: {verdict}. AUC {result['auc']:.3f}"
        if lo is not None and hi is not None:
            text += f" ({lo:.3f}–{hi:.3f})"
        points.append(text + ", chance is 0.5" + _at_low_fpr(result) + ".")
    attack = schema.get(attacked[0], "membership", "attack", default="membership")
    attack = attack.replace("loss threshold", "loss-threshold")
    missing = [names[run["name"]] for run in runs if run not in attacked]
    if missing:
        points.append(f"Not attacked: {_listed(missing)}.")
    points.append(
        f"Attack: {attack}; it sees the "
        f"{schema.get(attacked[0], 'membership', 'access', default='loss')}, reference "
        f"models: {schema.get(attacked[0], 'membership', 'references', default='none')}. "
        "Stronger attacks may find more."
    )
    clear = [names[run["name"]] for run in attacked if names[run["name"]] not in found]
    if not found:
        headline = (
            f"The {attack} attack detected no leak; that is no proof that there is none."
        )
    elif clear:
        headline = (
            f"The {attack} attack detects training examples with {_listed(found)}. "
            f"With {_listed(clear)} it detected none, which is no proof that nothing "
            "leaks."
        )
    else:
        headline = f"The {attack} attack detects training examples with {_listed(found)}."
    return Card(question, headline, tuple(points), "warn" if found else "plain")


def costs(runs: Sequence[Mapping[str, Any]]) -> Card:
    """Accuracy, time and memory against the run without privacy."""
    question, names = "What does it cost?", schema.labels(runs)
    base, last = schema.reference(runs), schema.strictest(runs)
    points = []
    for run in runs:
        test = schema.get(run, "test", default={})
        if schema.number(test, "accuracy", "value") is None:
            continue
        text = f"{_capital(names[run['name']])}: {estimate(test['accuracy'])} right"
        change = schema.get(test, "change")
        if run is not base and schema.number(change, "value") is not None:
            text += f"; {points_change(change)} against no privacy"
        points.append(text + ".")
    majority = next(
        (
            value
            for run in runs
            if (value := schema.number(run, "test", "majority_baseline")) is not None
        ),
        None,
    )
    if majority is not None:
        points.append(f"Always naming the commonest class: {percent(majority)} right.")
    prices = []
    for run in runs:
        if run is base:
            continue
        parts = [
            f"{value:.2f} × the {words}"
            for key, words in schema.COST.items()
            if (value := schema.ratio(run, base, key)) is not None
        ]
        if parts:
            prices.append((names[run["name"]], _listed(parts)))
    points += [f"{_capital(name)}: {text} of training without." for name, text in prices]
    values = [schema.number(run, "test", "accuracy", "value") for run in (base, last)]
    if base is not None and last is not base and None not in values:
        lost = 100 * (values[0] - values[1])
        headline = (
            f"{abs(lost):.1f} points of accuracy {'lost' if lost >= 0 else 'gained'} at "
            f"{names[last['name']]} ({percent(values[0])} to {percent(values[1])})"
        )
        slower = schema.ratio(last, base, "seconds_per_step")
        if slower is not None:
            headline += f"; a step takes {slower:.2f} × the time"
    elif values[1] is not None:
        headline = f"{_capital(names[last['name']])}: {percent(values[1])} right"
        headline += "; the price is not known, as there is no other run to compare with"
    else:
        headline = "Not measured: there is no test accuracy"
    return Card(question, headline + ".", tuple(points), "plain")


def served_worse(runs: Sequence[Mapping[str, Any]]) -> Card:
    """The groups with the lowest accuracy, and who pays most for privacy."""
    question, names = "Who is served worse?", schema.labels(runs)
    last = schema.strictest(runs)
    kinds = (("per_class", "class_gap", "class"), ("per_length", "length_gap", "length"))
    points, headline, tone = [], "", "plain"
    for key, gap_key, kind in kinds:
        judged, small = [], 0
        for row in schema.get(last, "test", key, default=[]):
            if schema.number(row, "value") is None or row.get("small"):
                small += 1
            else:
                judged.append(row)
        if judged:
            worst = min(judged, key=lambda row: row["value"])
            best = max(judged, key=lambda row: row["value"])
            where = f"at {names[last['name']]}" if len(runs) > 1 else "here"
            headline = headline or (
                f"{_group(kind, worst)}: {percent(worst['value'])} right {where}, "
                f"against {percent(best['value'])} for {_group(kind, best, False)}."
            )
            points.append(
                f"By {kind}, {where}: lowest {worst['name']} with {estimate(worst)}, "
                f"highest {best['name']} with {estimate(best)}."
            )
            gap = schema.get(last, "test", gap_key, default={})
            if schema.number(gap, "value") is not None:
                points.append(_gap(kind, gap))
            points += _changes(kind, judged, last, names)
        if small:
            points.append(
                f"{small} {kind} group{'s are' if small > 1 else ' is'} too small to "
                "judge and left out here."
            )
    base = schema.reference(runs)
    if base is not None and base is not last:
        rows = [
            row
            for row in schema.get(base, "test", "per_class", default=[])
            if schema.number(row, "value") is not None and not row.get("small")
        ]
        if rows:
            worst = min(rows, key=lambda row: row["value"])
            points.append(
                f"Without privacy the lowest class is {worst['name']} with "
                f"{estimate(worst)}."
            )
    if not headline:
        return Card(
            question,
            "Not measured: there is no accuracy per group.",
            ("An average can hide a group that is served badly.",),
            "plain",
        )
    return Card(question, headline, tuple(points), tone)


def limits(report: Mapping[str, Any]) -> list[str]:
    """What this report does not show: the general limits, then the report's own."""
    runs, out = report["runs"], []
    if any(schema.get(run, "membership") for run in runs):
        out.append(
            "An attack gives a lower limit of leakage: it shows that something leaks, "
            "never that nothing does. It was run against one trained model per setting."
        )
    if any(schema.is_private(run) for run in runs):
        out.append(
            "The promise covers the trained parameters. It does not cover this report "
            "(losses, accuracies and attack figures are computed without noise), a "
            "vocabulary built from the training text, or settings chosen by looking at "
            "the same data."
        )
    if any(schema.get(run, "test") for run in runs):
        out.append(
            "Intervals describe the test examples that happened to be drawn. They hold "
            "for the trained model at hand; another seed gives another model."
        )
    if any(schema.get(run, "test", "per_class") for run in runs):
        out.append(
            "Naming the worst of many groups picks on noise as well as on substance: "
            "the lowest figure is lower than it would be on fresh data."
        )
    return out + [str(item) for item in report.get("limits") or []]


def detectable(fpr: float, epsilon: float, delta: float) -> float:
    """Largest TPR at this FPR under (epsilon, delta)-DP; as `attacks.metrics.tpr_bound`.

    Written again because the report imports no pillar; a test holds the two together.
    """
    if epsilon > 700.0:
        return 1.0
    first = math.exp(epsilon) * fpr + delta
    second = 1.0 - math.exp(-epsilon) * (1.0 - delta - fpr)
    return min(first, second, 1.0)


def leak_detected(result: Mapping[str, Any]) -> bool:
    """True if the AUC, or the TPR at a low FPR, is above chance beyond its interval."""
    lo, _ = interval_of(result)
    if lo is not None and lo > 0.5:
        return True
    for fpr, point in (schema.get(result, "tpr_at_fpr", default={})).items():
        at_least = schema.number(point, "lo")
        at_most = schema.number(point, "fpr_hi")
        if at_least is not None and at_least > max(float(fpr), at_most or 0.0):
            return True
    return False


def interval_of(result: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Ends of the AUC's interval, None where absent."""
    ends = schema.get(result, "auc_interval", default=[None, None])
    return (ends[0], ends[1]) if len(ends) == 2 else (None, None)


def percent(value: float | None, digits: int = 1) -> str:
    """0.954 -> '95.4%'; None -> 'n/a'."""
    return "n/a" if value is None else f"{100 * value:.{digits}f}%"


def percent_up(value: float) -> str:
    """A limit, rounded so that it is never understated nor shown as 100% below 1."""
    for digits in (1, 2, 3):
        shown = math.ceil(round(value * 10 ** (2 + digits), 6)) / 10**digits
        if shown < 100 or value >= 1:
            return f"{shown:.{digits}f}%" if shown < 100 else "100%"
    return "100%"


def scientific(value: float) -> str:
    """1e-05 -> '1e-5'; 0.01 -> '0.01'."""
    return re.sub(r"e([+-])0+", lambda m: "e" + m[1].strip("+"), f"{value:.3g}")


def estimate(entry: Mapping[str, Any]) -> str:
    """{'value': .954, 'lo': .93, 'hi': .97} -> '95.4% (93.0–97.0%)'."""
    text, (lo, hi) = percent(schema.number(entry, "value")), _ends(entry)
    return text if lo is None else f"{text} ({100 * lo:.1f}–{100 * hi:.1f}%)"


def points_change(change: Mapping[str, Any]) -> str:
    """A paired change in points: '−3.9 points (−5.5 to −2.3)'."""
    value, (lo, hi) = schema.number(change, "value"), _ends(change)
    if value is None:
        return "n/a"
    text = f"{signed(100 * value)} points"
    return text if lo is None else f"{text} ({signed(100 * lo)} to {signed(100 * hi)})"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, a true minus and no negative zero."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0.0:
        return text
    return ("+" if value > 0 else "\u2212") + text


def _ends(entry: Any) -> tuple[float | None, float | None]:
    lo, hi = schema.number(entry, "lo"), schema.number(entry, "hi")
    return (None, None) if lo is None or hi is None else (lo, hi)


def _accounting(private: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    run = private[0]
    accountant = schema.get(run, "accountant")
    text = "Counted " + (
        f"with {ACCOUNTANTS.get(accountant, accountant)}"
        if accountant
        else "by an accountant that is not stated"
    )
    if schema.get(run, "sampler"):
        text += f" for {run['sampler']} sampling"
        if run["sampler"] == "shuffled":
            text += " (no credit is taken for the sampling)"
    if schema.get(run, "relation"):
        text += f", {RELATIONS.get(run['relation'], run['relation'])}"
    second = [
        f"{schema.number(r, 'epsilon_rdp'):.3g} ({names[r['name']]})"
        for r in private
        if schema.number(r, "epsilon_rdp") is not None
    ]
    if second and accountant != "rdp":
        text += f"; the cruder RDP accountant would say ε = {_listed(second)}"
    return text + "."


def _at_low_fpr(result: Mapping[str, Any]) -> str:
    points = schema.get(result, "tpr_at_fpr", default={})
    usable = [(float(fpr), point) for fpr, point in points.items() if point]
    if not usable:
        return ""
    # 1% where it can be had, else the lowest that can.
    fpr, point = min(usable, key=lambda pair: (pair[0] != 0.01, pair[0]))
    achieved = schema.number(point, "achieved_fpr")
    alarms = fpr if achieved is None else achieved
    return (
        f"; wrongly accusing {percent(alarms, 2 if alarms < 0.01 else 1)} it finds "
        f"{estimate({**point, 'value': point.get('tpr')})} of the members"
    )


def _gap(kind: str, gap: Mapping[str, Any]) -> str:
    value, (lo, hi) = schema.number(gap, "value"), _ends(gap)
    text = f"Gap between the best and the worst {kind}: {100 * value:.1f} points"
    if lo is not None:
        text += f" ({100 * lo:.1f}–{100 * hi:.1f})"
    floor = schema.number(gap, "floor_95")
    if floor is None:
        return text + "."
    return text + (
        f"; chance alone would reach {100 * floor:.1f}, so "
        + ("the groups do differ." if value > floor else "chance may explain it.")
    )


def _changes(kind, judged, last, names) -> list[str]:
    changed = [row for row in judged if schema.number(row, "change", "value") is not None]
    if not changed:
        return []
    most = min(changed, key=lambda row: row["change"]["value"])
    value, hi = most["change"]["value"], schema.number(most, "change", "hi")
    if value >= 0:
        return [f"No {kind} group loses against no privacy."]
    sure = (
        "beyond chance, all groups taken together"
        if hi is not None and hi < 0
        else "which chance may explain"
    )
    return [
        f"Loses most to privacy by {kind}: {most['name']}, "
        f"{points_change(most['change'])}, {sure}."
    ]


def _group(kind: str, row: Mapping[str, Any], start: bool = True) -> str:
    if kind == "class":
        return f"{'Class' if start else 'class'} {row['name']}"
    return f"{'Length' if start else 'length'} {row['name']}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] if text[:1] != "ε" else text


def _listed(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]
