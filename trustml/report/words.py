"""The four answers of the first screen, in plain words, composed from the figures.

Rules of the wording: every figure with its interval and its baseline; the attack and
the accountant are named; "no leak detected by this attack" is never "no leak";
reproducible noise is said to be no secret; what was not measured is said to be not
measured.

Example::

    from trustml.report import words

    for card in words.cards(report):
        print(card.question, card.headline, *card.points)
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trustml.attacks import metrics
from trustml.report import fmt, schema

RELATIONS = {
    "add_or_remove_one": "adding or removing one example",
    "replace_one": "replacing one example by another",
    "replace_special": "replacing one example by an empty one",
}
USER_RELATIONS = {
    "add_or_remove_one": "adding or removing one user, with all their examples",
    "replace_one": "replacing one user, with all their examples, by another",
    "replace_special": "replacing one user, with all their examples, by an empty one",
}
ACCOUNTANTS = {
    "pld": "privacy loss distributions (PLD)",
    "rdp": "Rényi differential privacy (RDP)",
    "monte_carlo": "Monte Carlo draws (an upper limit at 99% confidence)",
}


class Card(NamedTuple):
    """One question of the first screen.

    Attributes:
      question: as asked.
      headline: the answer in one sentence.
      points: the figures behind it, one sentence each.
      more: what belongs to the answer but not on the first screen.
      tone: 'good', 'warn' or 'plain'; colours the edge, never the only signal.
    """

    question: str
    headline: str
    points: tuple[str, ...]
    more: tuple[str, ...] = ()
    tone: str = "plain"


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
            tone="warn",
        )
    unit = schema.get(private[0], "privacy_unit", default="one training example")
    points = []
    for run in private:
        eps, delta = schema.epsilon(run), schema.number(run, "delta") or 0.0
        if eps is None:
            points.append(f"{names[run['name']]}: the ε that was spent is not stated.")
            continue
        limit = float(metrics.tpr_bound(0.01, eps, delta))
        guessed = "who was in the training data"
        if schema.protects_users(run):
            guessed = "which users were in the training data, whole,"
        points.append(
            f"{names[run['name']]} ({eps:.3g} spent, δ = {fmt.scientific(delta)}): "
            f"whoever guesses {guessed} and wrongly accuses 1% finds "
            f"at most {fmt.percent_up(limit)} of those who were"
            + (
                ", which on its own rules out almost nothing."
                if limit > 0.5
                else ", by whatever method; blind guessing finds 1%."
            )
        )
    points += _loose_delta(private)
    broken = [names[r["name"]] for r in private if schema.get(r, "audit", "violated")]
    points += [text for run in private if (text := _audited(run, names))]
    secret = [run.get("noise_secret") for run in private]
    if all(secret):
        points.append("The noise was secret: its key came from the operating system.")
    elif any(value is False for value in secret):
        points.append(
            "The noise is reproducible, not secret: against anyone who knows the seed "
            "the promise does not hold. Train with a secret seed before giving a model "
            "away."
        )
    else:
        points.append("Whether the noise was secret is not stated.")
    more = [_accounting(private, names)]
    if len(private) < len(runs):
        more.append("The model without privacy promises nothing.")
    headline = f"Differential privacy for {re.sub('^one ', 'each ', unit)}, with "
    headline += fmt.listed([names[run["name"]] for run in private]) + "."
    if broken:
        headline += f" An audit finds it broken with {fmt.listed(broken)}."
    return Card(
        question,
        headline,
        tuple(points),
        tuple(more),
        "good" if all(secret) and not broken else "warn",
    )


def leaks(runs: Sequence[Mapping[str, Any]]) -> Card:
    """What attacks found, run by run; by shadow models where all runs have them."""
    question, names = "What leaks?", schema.labels(runs)
    strong, plain = schema.strongly_attacked(runs), runs
    if len(strong) == len(runs):
        runs = strong
    attacked = [
        run for run in runs if schema.number(run, "membership", "auc") is not None
    ]
    if not attacked:
        return Card(
            question,
            "Not measured: no attack was run.",
            ("That is no sign that nothing leaks.",),
        )
    found, points, more = [], [], []
    for run in attacked:
        result, name = run["membership"], names[run["name"]]
        lo, hi = interval_of(result)
        text = f"{fmt.capital(name)}: "
        if leak_detected(result):
            found.append(name)
            text += "leak detected"
        else:
            text += "no leak detected by this attack"
        text += f"; AUC {result['auc']:.3f}"
        if lo is not None and hi is not None:
            text += f" ({lo:.3f}–{hi:.3f})"
        points.append(text + ", chance is 0.5" + _at_low_fpr(result) + ".")
        if hi is not None and hi < 0.5:
            more.append(
                f"{fmt.capital(name)}: the AUC is below chance, by accident or because "
                "members and non-members differ in something other than membership."
            )
    first = attacked[0]["membership"]
    attack = (first.get("attack") or "membership").replace(
        "loss threshold", "loss-threshold"
    )
    count = schema.number(first, "shadow_models")
    own = f", {count:.0f} of them, trained as the audited one was" if count else ""
    points.append(
        f"The attack sees the {first.get('access') or 'loss'}; reference models: "
        f"{first.get('references') or 'none'}{own}. Stronger attacks may find more."
    )
    if count:
        points.append(_by_loss(plain, names))
    missing = [names[run["name"]] for run in runs if run not in attacked]
    if missing:
        points.append(f"Not attacked: {fmt.listed(missing)}.")
    clear = [names[run["name"]] for run in attacked if names[run["name"]] not in found]
    if not found:
        headline = f"The {attack} attack detected no leak; "
        headline += "that is no proof that there is none."
    elif clear:
        headline = (
            f"The {attack} attack detects training examples with {fmt.listed(found)}. "
            f"With {fmt.listed(clear)} it detected none, which is no proof that "
            "nothing leaks."
        )
    else:
        headline = (
            f"The {attack} attack detects training examples with {fmt.listed(found)}."
        )
    return Card(
        question, headline, tuple(points), tuple(more), "warn" if found else "plain"
    )


def _by_loss(runs: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """What an attacker without models of its own finds in the same runs."""
    parts = []
    for run in runs:
        value = schema.number(run, "membership", "auc")
        if value is not None:
            leaky = ", a leak" if leak_detected(run["membership"]) else ""
            parts.append(f"{names[run['name']]} {value:.3f}{leaky}")
    return f"By the loss threshold alone, AUC: {fmt.listed(parts)}."


def _audited(run: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The lower bound of an audit in a sentence; '' where there was none."""
    value = schema.number(run, "audit", "epsilon")
    if value is None:
        return ""
    level = fmt.percent(schema.number(run, "audit", "confidence") or 0.0, 0)
    name, method = names[run["name"]], schema.get(run, "audit", "method", default="")
    text = f"{fmt.capital(name)}, audited with canaries: ε is at least {value:.3g} "
    text += f"({level} confidence; {method}), "
    if schema.get(run, "audit", "violated"):
        return text + "ABOVE the promise, which proves a defect."
    return text + "below the promise, as it must be, and no proof of it."


def costs(runs: Sequence[Mapping[str, Any]]) -> Card:
    """Accuracy, time and memory against the run without privacy."""
    question, names = "What does it cost?", schema.labels(runs)
    base, last = schema.reference(runs), schema.strictest(runs)
    points = []
    for run in runs:
        parts, test = [], schema.get(run, "test", default={})
        if schema.number(test, "accuracy", "value") is not None:
            parts.append(f"{fmt.estimate(test['accuracy'])} right")
            change = schema.get(test, "change")
            if run is not base and schema.number(change, "value") is not None:
                parts[-1] += f", {fmt.points_change(change)}"
        price = [
            f"{value:.2f}× the {what}"
            for key, what in schema.COST.items()
            if run is not base and (value := schema.ratio(run, base, key)) is not None
        ]
        if price:
            parts.append(fmt.listed(price))
        if parts:
            points.append(f"{fmt.capital(names[run['name']])}: {'; '.join(parts)}.")
    majority = next(
        (
            value
            for run in runs
            if (value := schema.number(run, "test", "majority_baseline")) is not None
        ),
        None,
    )
    if majority is not None:
        points.append(
            f"Always naming the commonest class: {fmt.percent(majority)} right."
        )
    before, after = (
        schema.number(run, "test", "accuracy", "value") for run in (base, last)
    )
    if last is not base and before is not None and after is not None:
        lost, change = 100 * (before - after), (before, after)
        ends = fmt.ends_of(schema.get(last, "test", "change"))
        if ends is not None and ends[0] <= 0 <= ends[1]:
            lead = "No change of accuracy beyond chance"
        else:
            direction = "lost" if lost >= 0 else "gained"
            lead = f"{abs(lost):.1f} points of accuracy {direction}"
        headline = (
            f"{lead} with {names[last['name']]} "
            f"({' to '.join(map(fmt.percent, change))})"
        )
        slower = schema.ratio(last, base, "seconds_per_step")
        if slower is not None:
            headline += f"; a step takes {slower:.2f}× the time"
    elif after is not None:
        headline = f"{fmt.capital(names[last['name']])}: {fmt.percent(after)} right"
        headline += "; the price is not known, as there is no other run to compare with"
    else:
        headline = "Not measured: there is no test accuracy"
    return Card(question, headline + ".", tuple(points))


def served_worse(runs: Sequence[Mapping[str, Any]]) -> Card:
    """The groups with the lowest accuracy, and who pays most for privacy."""
    question, names = "Who is served worse?", schema.labels(runs)
    last = schema.strictest(runs)
    where = f" with {names[last['name']]}" if len(runs) > 1 else ""
    kinds = (
        ("per_class", "class_gap", "class"),
        ("per_length", "length_gap", "length"),
    )
    points, more, headline = [], [], ""
    for key, gap_key, kind in kinds:
        judged, small = _judged(last, key)
        if judged:
            worst = min(judged, key=lambda row: row["value"])
            best = max(judged, key=lambda row: row["value"])
            if len(judged) == 1:
                points.append(
                    f"By {kind}{where}: only {worst['name']} is large enough to judge, "
                    f"{fmt.estimate(worst)}, so there is nothing to compare it with."
                )
                headline = headline or f"No two {kind} groups can be compared."
                continue
            low, high = fmt.percent(worst["value"]), fmt.percent(best["value"])
            headline = headline or (
                f"{fmt.capital(kind)} {worst['name']}: {low} right{where}, against "
                f"{high} for {kind} {best['name']}."
            )
            text = f"By {kind}{where}: lowest {worst['name']}, {fmt.estimate(worst)}"
            gap = schema.get(last, "test", gap_key, default={})
            points.append(text + _gap(gap) + ".")
            change = _most_changed(kind, judged)
            if change:
                (points if kind == "class" else more).append(change)
            more.append(
                f"Highest by {kind}{where}: {best['name']}, {fmt.estimate(best)}."
            )
        if small:
            more.append(
                f"{small} {kind} group{'s are' if small > 1 else ' is'} too small to "
                "judge, and left out of these sentences."
            )
    base = schema.reference(runs)
    rows = _judged(base, "per_class")[0] if base is not None else []
    if rows and base is not last:
        worst = min(rows, key=lambda row: row["value"])
        points.append(
            f"Lowest class without privacy: {worst['name']}, {fmt.estimate(worst)}."
        )
    if not headline:
        return Card(
            question,
            "Not measured: there is no accuracy per group.",
            ("An average can hide a group that is served badly.",),
        )
    return Card(question, headline, tuple(points), tuple(more))


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


def relation(run: Mapping[str, Any]) -> str:
    """What neighbours differ by, in words; that of users where these are the unit."""
    known = USER_RELATIONS if schema.protects_users(run) else RELATIONS
    name = str(schema.get(run, "relation", default="\u2013"))
    return known.get(name, name)


def _loose_delta(private: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning where delta allows whole units of the data to be given away."""
    run = private[0]
    count, delta = schema.number(run, "num_units"), schema.number(run, "delta")
    if not count or not delta or count * delta < 1:
        return []
    return [
        f"δ = {fmt.scientific(delta)} is not below 1/{count:,.0f}, one over the units "
        "that are protected: a mechanism that publishes some of them whole could keep "
        "this promise. Choose a smaller δ."
    ]


def _accounting(private: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    run = private[0]
    accountant = schema.get(run, "accountant")
    text = "Counted " + (
        f"with {ACCOUNTANTS.get(accountant, accountant)}"
        if accountant
        else "by an accountant that is not stated"
    )
    if schema.get(run, "sampler"):
        sampler = run["sampler"].replace("poisson", "Poisson").replace("_", " ")
        text += f" for {sampler} sampling"
        if run["sampler"] == "shuffled":
            text += " (no credit is taken for the sampling)"
    if schema.get(run, "relation"):
        text += f", {relation(run)}"
    second = [
        f"{schema.number(r, 'epsilon_rdp'):.3g} ({names[r['name']]})"
        for r in private
        if schema.number(r, "epsilon_rdp") is not None
    ]
    if second and accountant != "rdp":
        text += f"; the cruder RDP accountant would say ε = {fmt.listed(second)}"
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
        f"; wrongly accusing {fmt.percent(alarms, 2 if alarms < 0.01 else 1)} it finds "
        f"{fmt.estimate({**point, 'value': point.get('tpr')})}"
    )


def _judged(run: Mapping[str, Any], key: str) -> tuple[list[Mapping[str, Any]], int]:
    """The groups large enough to judge, and how many are not."""
    rows = schema.get(run, "test", key, default=[])
    judged = [
        row
        for row in rows
        if schema.number(row, "value") is not None and not row.get("small")
    ]
    return judged, len(rows) - len(judged)


def _gap(gap: Mapping[str, Any]) -> str:
    value, ends = schema.number(gap, "value"), fmt.ends_of(gap)
    if value is None:
        return ""
    text = f"; {100 * value:.1f} points below the best"
    if ends is not None:
        text += f" ({fmt.span(ends)})"
    floor = schema.number(gap, "floor_95")
    if floor is None:
        return text
    verdict = "more than" if value > floor else "no more than"
    return text + f", {verdict} chance alone gives ({100 * floor:.1f})"


def _most_changed(kind: str, judged: Sequence[Mapping[str, Any]]) -> str:
    changed = [
        row for row in judged if schema.number(row, "change", "value") is not None
    ]
    if not changed:
        return ""
    most = min(changed, key=lambda row: row["change"]["value"])
    if most["change"]["value"] >= 0:
        return f"No {kind} group loses against no privacy."
    hi = schema.number(most, "change", "hi")
    sure = "beyond chance" if hi is not None and hi < 0 else "which chance may explain"
    return (
        f"Loses most to privacy by {kind}: {most['name']}, "
        f"{fmt.points_change(most['change'])}, {sure}."
    )
