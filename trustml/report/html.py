"""The page: one self-contained HTML file with figures inside and no script.

First the cards, then privacy, leakage, accuracy, groups and cost, each with figures
and the table behind them, then how it was measured and what was not. Every
string of the report is escaped; the only markup in the page is written here.

Example::

    from trustml.report import html

    pathlib.Path('report.html').write_text(html.render(report), encoding='utf-8')
"""

import html
from collections.abc import Mapping
from typing import Any

from trustml.report import (
    figures,
    fmt,
    private_groups,
    schema,
    style,
    tables,
    words,
)


def render(report: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
      report: as `schema` describes.

    Returns:
      HTML5, self-contained: no script, no link, no image from elsewhere.

    Raises:
      ValueError: if the report lacks its runs or their names.
    """
    report = schema.check(report)
    promised, leaks, costs, served = words.cards(report)
    body = _privacy(report, promised) + _leakage(report, leaks)
    body += _accuracy(report) + _groups(report, served) + _paid(report)
    body += _cost(report, costs)
    methods = (*_methods(report), *private_groups.methods(report))
    said = (*words.limits(report), *private_groups.limits(report))
    body += measured(report, methods) + limits(said)
    paid = private_groups.card(report)
    cards = (promised, leaks, costs, served, *([] if paid is None else [paid]))
    return page(report, cards, body)


def page(report: Mapping[str, Any], cards: tuple[words.Card, ...], body: str) -> str:
    """The document around `body`: style, title, what was studied, the cards.

    Args:
      report: title, data, task and date of it are shown; all may be missing.
      cards: of the first screen.
      body: HTML, of `section` and its like.
    """
    title = html.escape(str(report.get("title") or "Report"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style.CSS}</style></head>\n<body>"
        f'<header><h1>{title}</h1><p class="lead">{_subtitle(report)}</p></header>\n'
        f"<main>{_cards(cards)}{body}</main>\n"
        f"<footer>In brackets stand {_intervals(report)}. The figures of this page, in "
        f"full, are in {report.get('file') or 'report.json'} beside it.</footer>"
        "</body></html>\n"
    )


def _intervals(report: Mapping[str, Any]) -> str:
    if runs := report.get("runs"):
        level = schema.level(runs)
        but = "" if level == "95%" else f", those of accuracies {level} ones"
        return f"95% intervals{but}"
    level = schema.number(report, "level")
    if level is None or level == 0.95:
        return "95% intervals, but where another level is named"
    return f"{100 * level:g}% intervals, but where another level is named"


def _subtitle(report: Mapping[str, Any]) -> str:
    parts = []
    data = schema.get(report, "data", "name")
    if data:
        count = schema.number(report, "data", "counts", "train")
        parts.append(
            f"{data}, {count:,.0f} training examples" if count else f"{data} data"
        )
    model = schema.get(report, "task", "model")
    if model:
        count = schema.number(report, "task", "params")
        parts.append(f"{model}, {count:,.0f} parameters" if count else str(model))
    if report.get("created"):
        parts.append(str(report["created"]))
    return html.escape(" · ".join(parts))


def _cards(cards: tuple[words.Card, ...]) -> str:
    out = []
    for card in cards:
        points = "".join(f"<li>{html.escape(point)}</li>" for point in card.points)
        out.append(
            f'<section class="card {card.tone}"><h2>{html.escape(card.question)}</h2>'
            f"<p>{html.escape(card.headline)}</p><ul>{points}</ul></section>\n"
        )
    return f'<div class="cards">{"".join(out)}</div>'


def figure(title: str, svg: str, caption: str) -> str:
    """A figure with its title and caption; nothing where `svg` is empty."""
    if not svg:
        return ""
    return (
        f"<figure><h3>{html.escape(title)}</h3>{svg}"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>\n"
    )


def section(
    title: str,
    drawn: tuple[str, ...],
    tabled: tuple[str, ...],
    more: tuple[str, ...] = (),
) -> str:
    """A section, or nothing when all its parts are empty."""
    pictures, rest = "".join(drawn), "".join(tabled)
    if not pictures and not rest:
        return ""
    text = f"<p>{html.escape(' '.join(more))}</p>" if more else ""
    if pictures:
        pictures = f'<div class="figures">{pictures}</div>'
    return f"<section><h2>{html.escape(title)}</h2>{text}{pictures}{rest}</section>\n"


def _privacy(report: Mapping[str, Any], card: words.Card) -> str:
    runs = report["runs"]
    return section(
        "The promise",
        (
            figure(
                "Privacy spent while training",
                figures.epsilon(runs),
                "ε after each step, at the δ of the table. A run that is stopped early "
                "has spent less.",
            ),
            figure(
                "Accuracy against privacy",
                figures.utility(runs),
                f"Test accuracy with its {schema.level(runs)} interval; grey, the "
                "model without privacy. The accuracy axis does not begin at zero."
                + _majority(runs),
            ),
        ),
        (tables.privacy(runs),),
        card.more,
    )


def _majority(runs) -> str:
    for run in runs:
        value = schema.number(run, "test", "majority_baseline")
        if value is not None:
            return f" Naming the commonest class always: {fmt.percent(value)}."
    return ""


def _leakage(report: Mapping[str, Any], card: words.Card) -> str:
    runs = report["runs"]
    strong = schema.strongly_attacked(runs)
    drawn, tabled = (), ()
    if strong:
        drawn = (
            figure(
                "An attacker with shadow models",
                figures.roc(strong, "roc-strong"),
                "The attack trains models of its own as the audited one was trained, "
                "and asks them what members look like. Axes and limits as beside it.",
            ),
        )
        tabled = (tables.membership(strong),)
    return section(
        "What an attacker finds",
        (
            *drawn,
            figure(
                "Looking at the loss alone"
                if strong
                else "Members found against false alarms",
                figures.roc(runs),
                "Both axes are logarithmic: what counts is the left edge, where an "
                "attacker is sure. Grey: no better than guessing. Dashed, in the "
                "colour of the run: the limit, the most that any attack can reach "
                "under the promise, for an example whose membership was decided by "
                "chance. The axis ends at a single false alarm; nothing below it can "
                "be seen.",
            ),
        ),
        (*tabled, tables.membership(runs)),
        card.more,
    )


def _accuracy(report: Mapping[str, Any]) -> str:
    runs = report["runs"]
    return section(
        "Accuracy",
        (
            figure(
                "Training loss",
                figures.curves(runs, "loss"),
                "Averaged over windows of steps. Computed on training examples without "
                "noise: for the owner of the data, not for release.",
            ),
            figure(
                "Accuracy while training",
                figures.curves(runs, "accuracy"),
                "At each evaluation." + _majority(runs),
            ),
        ),
        (tables.accuracy(runs),),
    )


def _groups(report: Mapping[str, Any], card: words.Card) -> str:
    runs = report["runs"]
    caption = (
        f"Exact {schema.level(runs)} intervals. That those of two models overlap does "
        "not show that the models are alike: the column “change” of the table compares "
        "them example by example."
    )
    return section(
        "Who is served worse",
        (
            figure("By class", figures.groups(runs, "per_class"), caption),
            figure(
                "By length",
                figures.groups(runs, "per_length"),
                "The same by length of the example. Hollow: too few to judge.",
            ),
        ),
        (
            _folded(tables.groups(runs, "per_class"), runs, "per_class"),
            tables.groups(runs, "per_length"),
        ),
        card.more,
    )


def _paid(report: Mapping[str, Any]) -> str:
    """What privacy does to groups of people, where the data know them."""
    return "".join(
        section(
            one["title"],
            tuple(figure(*drawn) for drawn in one["figures"]),
            one["tables"],
            one["text"],
        )
        for one in private_groups.sections(report)
    )


def _folded(table: str, runs, key: str) -> str:
    most = max(
        (len(schema.get(run, "test", key, default=[])) for run in runs), default=0
    )
    if most <= 20 or not table:
        return table
    return f"<details><summary>All {most} classes as a table</summary>{table}</details>"


def _cost(report: Mapping[str, Any], card: words.Card) -> str:
    runs = report["runs"]
    return section(
        "The price",
        (
            figure(
                "Time, memory and arithmetic",
                figures.cost(runs),
                "Time is measured after compilation; memory and arithmetic are the "
                "compiler's own figures, arithmetic for one microbatch and one update. "
                "A private update draws noise for every parameter, which weighs most "
                "where a batch reaches few of them, as with embeddings.",
            ),
        ),
        (tables.cost(runs),),
        card.more,
    )


def _methods(report: Mapping[str, Any]) -> tuple[str, ...]:
    methods = []
    if any(schema.get(run, "test") for run in report["runs"]):
        methods.append(
            "Rates have exact intervals (Clopper and Pearson) unless the table says "
            "otherwise; changes between two models are paired, example by example "
            "(Bonett and Price 2012); gaps between groups stand beside what shuffled "
            "group labels give."
        )
    if any(schema.get(run, "membership") for run in report["runs"]):
        methods.append(
            "The attack's AUC has DeLong's interval, ties counting one half. "
            "Thresholds depend on non-members only and never exceed the false alarms "
            "stated; nothing is interpolated."
        )
    if schema.strongly_attacked(report["runs"]):
        methods.append(
            "Shadow models were trained with the settings of each run, with privacy of "
            "the same budget where it has one, on random halves of its training and "
            "validation examples together; every example was in half of them. The "
            "score is how much likelier the attacked model finds an example than they "
            "do in the mean, half of them having learnt it (RMIA)."
        )
    if any(schema.get(run, "audit") for run in report["runs"]):
        methods.append(
            "The audited ε is a lower bound from one more run of the same trainer with "
            "canaries, examples whose clipped gradient moves one coordinate of their "
            "own; a fair coin let each in. It is the largest bound of several methods, "
            "at the confidence that all of them hold together."
        )
    return tuple(methods)


def measured(report: Mapping[str, Any], methods: tuple[str, ...]) -> str:
    """The command, data, model, machine and versions behind a page, and how."""
    data, task = report.get("data") or {}, report.get("task") or {}
    classes = data.get("classes")
    if isinstance(classes, list):
        classes = f"{len(classes)}: " + ", ".join(map(str, classes[:30]))
        classes += ", …" if len(data["classes"]) > 30 else ""
    pairs = [
        ("Data", data.get("name")),
        ("Source", data.get("source")),
        ("Licence", data.get("licence")),
        ("Examples", _flat(data.get("counts"))),
        ("Classes", classes),
        ("Model", task.get("model")),
        ("Parameters", _flat(task.get("params"))),
        ("Machine", _flat(report.get("machine"))),
        ("Versions", _flat(report.get("versions"))),
        ("Date", report.get("created")),
    ]
    items = "".join(
        f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in pairs
        if value not in (None, "")
    )
    command = report.get("command")
    if command:
        items = (
            f"<dt>Command</dt><dd><pre>{html.escape(str(command))}</pre></dd>" + items
        )
    text = "".join(f"<p>{html.escape(method)}</p>" for method in methods)
    if not items and not text:
        return ""
    return f"<section><h2>How this was measured</h2><dl>{items}</dl>{text}</section>\n"


def limits(sentences: tuple[str, ...]) -> str:
    """What a page does not show, one sentence each."""
    items = "".join(f"<li>{html.escape(item)}</li>" for item in sentences)
    if not items:
        return ""
    return f"<section><h2>What this does not show</h2><ul>{items}</ul></section>\n"


def _flat(value: Any) -> str:
    """{'train': 13084} -> 'train 13,084'; lists joined; numbers with separators."""
    if value is None:
        return ""
    if isinstance(value, dict):
        # One order whatever the order of the keys: a page made again from report.json,
        # whose keys are sorted, is the same page.
        first = {"train": 0, "valid": 1, "test": 2}
        keys = sorted(value, key=lambda key: (first.get(key, 3), key))
        return ", ".join(f"{key} {_flat(value[key])}" for key in keys)
    if isinstance(value, list):
        return ", ".join(_flat(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
