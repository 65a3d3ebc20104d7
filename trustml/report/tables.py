"""Tables: data of the report in, HTML out. Each scrolls in its own box on a phone.

All text passes through `html.escape`; a missing figure is an en dash.

Example::

    from trustml.report import tables

    tables.table(('class', 'n', 'right'), [('greet', '100', '95.0%')], 'Per class')
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from trustml.report import fmt, schema, words

Runs = Sequence[Mapping[str, Any]]
NONE = "\u2013"
_LONG, _WRAPPED = 60, 'style="white-space: normal"'


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, note: str = ""
) -> str:
    """One table; the first column names the row, all others are right-aligned.

    Titles, and cells of more than 60 letters, run over several lines.

    Args:
      head: column titles.
      rows: cells as text; escaped here.
      caption: says what the table shows.
      note: small print under it.

    Returns:
      HTML, '' without rows.
    """
    if not rows:
        return ""
    cells = "".join(
        f'<th scope="col" {_WRAPPED}>{html.escape(title)}</th>' for title in head
    )
    body = "".join(
        f'<tr><th scope="row">{html.escape(str(row[0]))}</th>'
        + "".join(
            f"<td{' ' + _WRAPPED if len(str(cell)) > _LONG else ''}>"
            f"{html.escape(str(cell))}</td>"
            for cell in row[1:]
        )
        + "</tr>"
        for row in rows
    )
    label = html.escape(caption, quote=True)
    small = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{cells}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>{small}"
    )


def folded(
    head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, note: str = ""
) -> str:
    """`table`, behind a line to click on where there are more than 20 rows."""
    made = table(head, rows, caption, note)
    if len(rows) <= 20:
        return made
    summary = html.escape(f"{caption}: {len(rows)} rows")
    return f"<details><summary>{summary}</summary>{made}</details>"


def privacy(runs: Runs) -> str:
    """Every number the promise rests on, one column a run."""
    runs = [run for run in runs if schema.is_private(run)]
    rows = (
        ("ε asked for", lambda r: _number(r, "epsilon_target")),
        ("ε spent", lambda r: _number(r, "epsilon_spent", digits=4)),
        (
            "nominal ε, NOT guaranteed",
            lambda r: _number(r, "epsilon_nominal", digits=4),
        ),
        ("ε by the RDP accountant", lambda r: _number(r, "epsilon_rdp", digits=4)),
        ("audited: ε at least", _audited),
        ("δ", lambda r: _scientific(r, "delta")),
        ("protects", lambda r: _text(r, "privacy_unit")),
        ("of these there are", lambda r: _number(r, "num_units", digits=9)),
        ("neighbours differ by", lambda r: _relation(r)),
        ("accountant", lambda r: _named(r, "accountant")),
        ("sampling", lambda r: _named(r, "sampler")),
        ("expected batch size", lambda r: _number(r, "expected_batch_size", digits=6)),
        ("steps", lambda r: _number(r, "steps", digits=9)),
        ("noise multiplier σ", lambda r: _number(r, "noise_multiplier", digits=4)),
        ("clipping norm C", lambda r: _number(r, "l2_clip_norm")),
        ("noise secret", lambda r: _flag(r, "noise_secret", "yes", "no, reproducible")),
        ("nan or inf gradients, set to 0", lambda r: _number(r, "nonfinite_examples")),
        (
            "parameters with gradients materialised",
            lambda r: _number(r, "fallback_leaves"),
        ),
    )
    return _by_run(runs, rows, "What the promise rests on")


def accuracy(runs: Runs) -> str:
    """Test accuracy per run with interval, change and baseline."""
    rows = (
        ("right on test examples", lambda r: _estimate(r, "test", "accuracy")),
        ("spans found, F1", lambda r: _estimate(r, "test", "slot_f1")),
        ("against no privacy (paired)", lambda r: _change(schema.get(r, "test"))),
        ("test examples", lambda r: _number(r, "test", "accuracy", "n", digits=9)),
        ("interval", lambda r: _text(r, "test", "accuracy", "method")),
        (
            "baseline: commonest class",
            lambda r: fmt.percent(schema.number(r, "test", "majority_baseline")),
        ),
    )
    return _by_run(runs, rows, "Accuracy", needs=("test",))


def membership(runs: Runs) -> str:
    """The attack per run: AUC, TPR at each FPR with the achieved one, baselines."""
    runs = [run for run in runs if schema.get(run, "membership")]
    fprs: set[str] = {
        fpr for r in runs for fpr in schema.get(r, "membership", "tpr_at_fpr") or {}
    }
    rows = [
        ("AUC (chance 0.5)", _auc),
        (
            "balanced accuracy (chance 50%)",
            lambda r: _estimate(r, "membership", "balanced_accuracy"),
        ),
    ]
    for fpr in sorted(fprs, key=float, reverse=True):
        rows.append(
            (
                f"members found at ≤ {float(fpr):.3g} FPR".replace(
                    f"{float(fpr):.3g}", f"{100 * float(fpr):.3g}%"
                ),
                lambda r, fpr=fpr: _tpr(r, fpr),
            )
        )
    rows += [
        ("members scored", lambda r: _number(r, "membership", "n_members", digits=9)),
        ("others scored", lambda r: _number(r, "membership", "n_nonmembers", digits=9)),
        (
            "tied scores",
            lambda r: fmt.percent(_get(r, "membership", "tie_fraction")),
        ),
    ]
    return _by_run(
        runs,
        rows,
        "Membership attack: " + (_attack(runs[0]["membership"]) if runs else ""),
        "In brackets: 95% interval. “at” is the share of non-members that was in fact "
        "accused; it never exceeds the share asked for. Guessing finds as large a "
        "share of members as it accuses of others. n/a: too few non-members to show so "
        "small a share. *: fewer than ten false alarms allowed, so that share is "
        "itself uncertain. The threshold of the balanced accuracy was chosen on the "
        "other half.",
    )


def groups(runs: Runs, key: str) -> str:
    """Accuracy per class or per length, one column a run, with paired changes."""
    shown = [run for run in runs if schema.get(run, "test", key)]
    if not shown:
        return ""
    names = schema.labels(runs)
    by_run = [{row["name"]: row for row in run["test"][key]} for run in shown]
    order = list(dict.fromkeys(name for rows in by_run for name in rows))
    head, what = [], "class" if key == "per_class" else "length"
    for run, rows in zip(shown, by_run, strict=True):
        head.append(names[run["name"]])
        if any(row.get("change") for row in rows.values()):
            head.append("change")
    body, small = [], False
    for name in order:
        first = next(rows[name] for rows in by_run if name in rows)
        flagged = any(rows.get(name, {}).get("small") for rows in by_run)
        small |= flagged
        cells = [name + (" *" if flagged else ""), _number(first, "n", digits=9)]
        for rows in by_run:
            cells.append(_estimate(rows.get(name, {})))
            if any(row.get("change") for row in rows.values()):
                cells.append(_change(rows.get(name, {})))
        body.append(cells)
    note = f"In brackets: exact {schema.level(runs)} intervals."
    if "change" in head:
        note += (
            " Change: against no privacy on the same examples, in points; its "
            "intervals hold for all groups together."
        )
    if small:
        note += " *: too small a group to judge."
    return table([what, "n", *head], body, f"Accuracy by {what}", note)


def cost(runs: Runs) -> str:
    """Time, memory and arithmetic per run, absolute and over no privacy."""
    base = schema.reference(runs)
    kinds = (
        ("time per step", "seconds_per_step", seconds),
        ("time per epoch", "epoch_seconds", seconds),
        ("examples per second", "examples_per_second", lambda v: f"{v:,.0f}"),
        ("compilation", "compile_seconds", seconds),
        ("training in all", "wall_seconds", seconds),
        ("temporary memory", "peak_temp_bytes", _bytes),
        ("arithmetic, microbatch and update (FLOPs)", "flops", lambda v: f"{v:.3g}"),
    )
    rows = []
    for title, key, form in kinds:

        def cell(run, key=key, form=form):
            value = schema.number(run, "cost", key)
            text = NONE if value is None else form(value)
            over = schema.ratio(run, base, key) if run is not base else None
            return text if over is None else f"{text} ({over:.2f} ×)"

        rows.append((title, cell))
    return _by_run(
        runs,
        rows,
        "Cost",
        "In brackets: over the run without privacy. Compilation is not part of the "
        "time per step."
        if base is not None
        else "",
        needs=("cost",),
    )


def _by_run(runs, rows, caption, note="", needs=()):
    """Quantities down, runs across; rows without any figure are left out."""
    runs = [run for run in runs if all(schema.get(run, part) for part in needs)]
    if not runs:
        return ""
    names = schema.labels(runs)
    body = []
    for title, cell in rows:
        cells = [cell(run) for run in runs]
        if any(text not in (NONE, "n/a") for text in cells):
            body.append([title, *cells])
    return table(["", *(names[run["name"]] for run in runs)], body, caption, note)


def _get(tree: Any, *path: str) -> float | None:
    return schema.number(tree, *path)


def _number(tree: Any, *path: str, digits: int = 3) -> str:
    value = schema.number(tree, *path)
    if value is None:
        return NONE
    return f"{int(value):,}" if value == int(value) else f"{value:.{digits}g}"


def _scientific(tree: Any, *path: str) -> str:
    value = schema.number(tree, *path)
    return NONE if value is None else fmt.scientific(value)


def _text(tree: Any, *path: str) -> str:
    return str(schema.get(tree, *path, default=NONE))


def _named(tree: Any, key: str) -> str:
    """An option's value as it is spelled outside of code."""
    text = _text(tree, key)
    spelled = {"pld": "PLD", "rdp": "RDP"}.get(text, text)
    return spelled.replace("poisson", "Poisson").replace("_", " ")


def _attack(result: Mapping[str, Any]) -> str:
    """'loss threshold', or 'RMIA, 8 shadow models'."""
    count = schema.number(result, "shadow_models")
    own = f", {count:.0f} shadow models" if count else ""
    return _text(result, "attack") + own


def _audited(run: Mapping[str, Any]) -> str:
    """'1.2 (99% confidence)'; a bound above the promise says so."""
    value = schema.number(run, "audit", "epsilon")
    if value is None:
        return NONE
    level = schema.number(run, "audit", "confidence") or 0.0
    over = ", ABOVE THE PROMISE" if schema.get(run, "audit", "violated") else ""
    return f"{value:.3g} ({fmt.percent(level, 0)} confidence{over})"


def _flag(tree: Any, key: str, yes: str, no: str) -> str:
    value = schema.get(tree, key)
    return NONE if value is None else (yes if value else no)


def _relation(run: Mapping[str, Any]) -> str:
    return words.relation(run)


def _estimate(tree: Any, *path: str) -> str:
    entry = schema.get(tree, *path) if path else tree
    return NONE if schema.number(entry, "value") is None else fmt.estimate(entry)


def _change(tree: Any) -> str:
    change = schema.get(tree, "change")
    if schema.number(change, "value") is None:
        return NONE
    return fmt.points_change(change).replace(" points", "")


def _auc(run: Mapping[str, Any]) -> str:
    value = schema.number(run, "membership", "auc")
    if value is None:
        return NONE
    lo, hi = words.interval_of(run["membership"])
    return f"{value:.3f}" + (
        "" if lo is None or hi is None else f" ({lo:.3f}–{hi:.3f})"
    )


def _tpr(run: Mapping[str, Any], fpr: str) -> str:
    point = schema.get(run, "membership", "tpr_at_fpr", fpr)
    if point is None:
        return "n/a"
    star = "*" if point.get("low_resolution") else ""
    achieved = schema.number(point, "achieved_fpr")
    at = "" if achieved is None else f" at {100 * achieved:.3g}%"
    return fmt.estimate({**point, "value": point.get("tpr")}) + at + star


def seconds(value: float) -> str:
    """0.021 -> '21 ms'; 95 -> '95.0 s'; 300 -> '5.0 min'."""
    if value < 1.0:
        return f"{1000 * value:.3g} ms"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def _bytes(value: float) -> str:
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
