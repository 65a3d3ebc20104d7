"""The report of experiment `membership`: answers first, then figures and tables.

Everything here words and draws what `trustml.experiments.leaks` measured.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from trustml.attacks import closed_form, metrics, targets
from trustml.experiments import learned
from trustml.experiments.leaks import HEADLINE, Leak, as_dict
from trustml.report import fmt, study, tables, words
from trustml.report import leaks as figures

METHODS = (
    "Every model is the target once; the others are the attacker's, without the one "
    "that was trained on exactly the other examples, which would give membership away "
    "by its place in the design. AUC and members found are means over targets, each "
    "with a threshold of its own; in brackets, intervals of a bootstrap over targets "
    "and examples at once.",
    "Thresholds never accuse more non-members than the share stated; nothing is "
    "interpolated. Balanced accuracies are at thresholds fixed on other models that "
    "the attacker trained himself, never on the target; with fewer than 6 models "
    "nobody is left to fix those of attacks with references.",
    "An audited ε is a lower limit at 95% from the guesses on one model, that of RMIA; "
    "it needs examples that were in by coins of their own "
    "(attack.design='independent').",
)
LIMITS = (
    "An attack gives a lower limit of leakage: it shows that something leaks, never "
    "that nothing does.",
    "The attacker of these figures has data of the same distribution and trains many "
    "models as the owner does; one who has less finds less.",
    "The figures describe these models and examples; another data set or another "
    "training would give others.",
)


def write(
    workdir: str | os.PathLike, frame: Mapping[str, Any], found: Sequence[Leak]
) -> pathlib.Path:
    """report.json and report.html of the sets of models in `found`.

    Args:
      workdir: of the run.
      frame: of `describe.frame`.
      found: one entry a set of models, the first one without privacy where there is.

    Returns:
      The path of report.html.
    """
    sections = [_over_budgets(found)] if len(found) > 1 else []
    sections += [_of_models(leak) for leak in found]
    return study.write(
        workdir,
        frame,
        cards(found),
        [section for section in sections if section is not None],
        numbers={"leaks": [as_dict(leak) for leak in found]},
        methods=METHODS,
        limits=LIMITS,
    )


def cards(found: Sequence[Leak]) -> tuple[words.Card, ...]:
    """The answers: what leaks, whether privacy helps, and if the attack is fair."""
    first = found[0]
    out = [_leaks(first)]
    private = [leak for leak in found if leak.epsilon is not None]
    if private:
        out.append(_promised(private))
    if first.blind is not None:
        tone = "warn" if first.blind.differs else "good"
        headline = (
            "No: the examples themselves differ."
            if first.blind.differs
            else "Nothing but membership was found to differ."
        )
        question = "Is it membership that the attack sees?"
        out.append(words.Card(question, headline, (first.blind.sentence,), tone=tone))
    return tuple(out)


def _leaks(leak: Leak) -> words.Card:
    budget = max(leak.attacks)
    best = leak.attacks[budget][HEADLINE]
    points = [
        f"{HEADLINE} has AUC "
        f"{figures.heading(best.auc.value, best.auc.lo, best.auc.hi)}; 0.5 is guessing."
    ]
    for fpr, mean in best.tpr_at_fpr.items():
        if mean is not None:
            points.append(
                f"Wrongly accusing {fmt.percent(fpr)} of the others, it finds "
                f"{figures.share(mean.value, mean.lo, mean.hi)} of the members; "
                f"guessing finds {fmt.percent(fpr)}."
            )
    other = leak.attacks[budget].get("loss")
    if other is not None:
        points.append(
            "Looking at the loss alone, without models of its own, an attacker has AUC "
            f"{figures.heading(other.auc.value, other.auc.lo, other.auc.hi)}."
        )
    finder = max(leak.attacks[budget], key=lambda a: leak.attacks[budget][a].auc.lo)
    strongest = leak.attacks[budget][finder].auc
    leaky = strongest.lo > 0.5
    if finder != HEADLINE:
        points.insert(
            0,
            f"Of {len(leak.attacks[budget])} attacks {finder} finds most (which "
            "flatters it a little), AUC "
            f"{figures.heading(strongest.value, strongest.lo, strongest.hi)}; 0.5 is "
            "guessing.",
        )
    who = "without privacy" if leak.epsilon is None else f"at ε = {leak.epsilon:.3g}"
    headline = (
        f"Models trained {who} give members away."
        if leaky
        else f"No attack of these finds anything in models trained {who}."
    )
    if leak.n_invalid:
        points.append(f"{leak.n_invalid} examples had no finite signal: not attacked.")
    question = f"What does an attacker with {budget} models of his own find?"
    return words.Card(
        question, headline, tuple(points), tone="warn" if leaky else "plain"
    )


def _promised(private: Sequence[Leak]) -> words.Card:
    points = []
    for leak in private:
        eps, delta = leak.epsilon or 0.0, leak.delta or 0.0
        best = leak.attacks[max(leak.attacks)][HEADLINE]
        limit = float(metrics.tpr_bound(0.01, eps, delta))
        points.append(
            f"At ε = {eps:.3g} the attack has AUC "
            f"{figures.heading(best.auc.value, best.auc.lo, best.auc.hi)} and balanced "
            f"accuracy {_share(best.balanced_accuracy)} "
            "(guessing: 50%); at 1% false alarms no attack at all can find more than "
            f"{fmt.percent_up(limit)}."
        )
        if leak.audited is not None:
            bound = leak.audited.epsilon
            kept = "within the promise" if bound <= eps else "ABOVE the promise"
            points.append(
                f"Audited at ε = {eps:.3g}: at least {bound:.3g} at 95%, {kept}."
            )
    return words.Card(
        "Does differential privacy stop it?",
        "The promise bounds every attack; this one is shown beside it.",
        tuple(points),
    )


def _cell(measured: targets.Measured, fpr: float) -> str:
    return _share(measured.tpr_at_fpr.get(fpr))


def _share(mean: targets.Mean | None) -> str:
    return "n/a" if mean is None else figures.share(mean.value, mean.lo, mean.hi)


def _rows(found: Mapping[str, targets.Measured], models: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    order = [*closed_form.THREATS, *found]
    for name in sorted(found, key=order.index):
        measured = found[name]
        auc = measured.auc
        rows.append(
            (
                name,
                "0" if _has(name) == "none" else models,
                _has(name),
                figures.heading(auc.value, auc.lo, auc.hi),
                _share(measured.balanced_accuracy),
                *(_cell(measured, fpr) for fpr in (0.1, 0.01, 0.001)),
            )
        )
    return rows


def _has(name: str) -> str:
    """Reference models of an attack, as in its threat model."""
    threat = closed_form.THREATS.get(name)
    if threat is not None:
        return threat.references
    return "IN+OUT" if name == "Shokri" else "none"


_HEAD = (
    *("attack", "models", "references", "AUC", "balanced accuracy"),
    *("found at 10%", "at 1%", "at 0.1% false alarms"),
)


_DRAWN = (HEADLINE, "LiRA offline", "loss")


def _of_models(leak: Leak) -> study.Section:
    private = leak.epsilon is not None
    title = f"Models at ε = {leak.epsilon:.3g}" if private else "Models without privacy"
    tabled = []
    for budget in sorted(leak.attacks, reverse=True):
        caption = f"Attacks with {budget} reference models, {leak.n_models} targets"
        rows = _rows(leak.attacks[budget], str(budget))
        tabled.append(tables.table(_HEAD, rows, caption))
    if leak.learned:
        count = next(iter(leak.learned.values())).n_targets
        caption = f"Attacks that train networks of their own, {count} targets"
        most = min(learned.SHADOWS, max(leak.attacks))
        rows = _rows(leak.learned, str(most))
        tabled.append(tables.table(_HEAD, rows, caption))
    if leak.classes is not None:
        tabled.append(_classes(leak))
    drawn = (
        (
            "Members found against false alarms",
            figures.roc(leak.curves, f"roc-{leak.name}"),
            "The first target. Both axes are logarithmic: what counts is the left "
            f"edge, where an attacker is sure. Shaded: the band of {HEADLINE}, which "
            "holds for all thresholds at once.",
        ),
        (
            f"Scores of {HEADLINE}",
            figures.histograms(*leak.scores, "score", f"scores-{leak.name}"),
            "The first target; larger means member.",
        ),
    )
    return study.Section(title, figures=drawn, tables=tuple(tabled))


def _classes(leak: Leak) -> str:
    found = leak.classes
    assert found is not None
    rows = [
        (
            one.name,
            str(one.n_members),
            figures.share(one.tpr, *one.tpr_interval),
            str(one.n_nonmembers),
            figures.share(one.fpr, *one.fpr_interval),
        )
        for one in found.rates
        if one.n_members and one.n_nonmembers
    ]
    head = ("class", "members", "found", "others", "wrongly accused")
    return tables.folded(
        head,
        rows,
        f"Who is at risk: {HEADLINE} on the first target, by class",
        "One threshold for all, at 1% false alarms over all classes. Exact intervals, "
        "for every class by itself.",
    )


def _over_budgets(found: Sequence[Leak]) -> study.Section | None:
    private = [leak for leak in found if leak.epsilon is not None]
    if not private:
        return None

    def points(attack, of):
        found = [
            (leak, leak.attacks[max(leak.attacks)].get(attack)) for leak in private
        ]
        return [
            {"epsilon": leak.epsilon, "value": mean.value, "lo": mean.lo, "hi": mean.hi}
            for leak, one in found
            if one and (mean := of(one))
        ]

    def series(of):
        return [{"name": name, "points": points(name, of)} for name in _DRAWN]

    rows = []
    for leak in found:
        best = leak.attacks[max(leak.attacks)][HEADLINE]
        shokri, accuracy = leak.learned.get("Shokri"), leak.accuracy
        rows.append(
            (
                "no privacy" if leak.epsilon is None else f"ε = {leak.epsilon:.3g}",
                "n/a"
                if accuracy is None
                else figures.share(*(accuracy[k] for k in ("value", "lo", "hi"))),
                figures.heading(best.auc.value, best.auc.lo, best.auc.hi),
                _share(best.balanced_accuracy),
                "n/a" if shokri is None else _share(shokri.balanced_accuracy),
                *(_cell(best, fpr) for fpr in (0.1, 0.01, 0.001)),
                "n/a" if leak.audited is None else f"{leak.audited.epsilon:.3g}",
            )
        )
    head = ("models", "their accuracy", "AUC", "balanced accuracy", "Shokri's")
    head = (*head, *_HEAD[5:], "audited ε")
    drawn = (
        (
            "AUC against privacy",
            figures.against_epsilon(
                series(lambda one: one.auc), "AUC", chance=0.5, name="auc-epsilon"
            ),
            "All reference models; intervals over targets and examples.",
        ),
        (
            "Balanced accuracy against privacy",
            figures.against_epsilon(
                series(lambda one: one.balanced_accuracy),
                "balanced accuracy",
                chance=0.5,
                name="balanced-epsilon",
            ),
            "At thresholds fixed on shadow models; intervals as above.",
        ),
    )
    return study.Section(
        "Leakage against privacy",
        figures=drawn,
        tables=(
            tables.table(
                head,
                rows,
                f"{HEADLINE}, all reference models",
                "The models' accuracy is that on examples they were not trained on; "
                "Shokri's is the balanced accuracy of his attack.",
            ),
        ),
    )
