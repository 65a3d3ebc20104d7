"""The report of experiment `selection_study`: the answers, then curves and tables.

Everything here words and draws what `trustml.experiments.selection_measure` measured.
"""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trustml import intervals, specs
from trustml.experiments import selection_measure
from trustml.experiments.selection_measure import Key, Measured
from trustml.report import drawing, fmt, leaks, study, tables, words

Found = Mapping[Key, Measured]

NAMES = {
    "uniform": "uniform",
    "capped": "capped power",
    "log": "log(1 + n)",
    "threshold": "threshold",
    "activity": "by activity",
    "unbiased": "by activity at 1/p",
    "hajek": "by activity at 1/p (Hájek)",
}
SETTINGS = {
    "static_all": "all data from the start",
    "static_capped": "what storage leaves, from the start",
    "continual": "data that arrive",
}
METHODS = (
    "For a seed all arms have the same clients, arrivals, order of examples, initial "
    "parameters and random numbers behind the coins; changes and rounds saved are "
    "taken seed by seed. In brackets: t-intervals over seeds, each for itself; nothing "
    "is adjusted for how many there are.",
    "Rounds to target are those until the test accuracy first comes to the target; it "
    "is looked at in the rounds of the curves. Where a seed never comes there, a count "
    "stands in place of the mean.",
    "Catch-up is the round in which a run first comes to within the tolerance of where "
    "uniform selection with all data from the start ends; regret, the accuracy missed "
    "against it, on average over rounds.",
    "Tenths are of clients, by the examples that they have in all. The error that a "
    "tenth meets is that on test examples of the labels its clients hold, every client "
    "counting the same.",
    "In the first periods few clients hold data: a cohort is then at most all of them, "
    "and a threshold that nobody reaches is the largest size there is.",
)
LIMITS = (
    "Clients are simulated. A round is taken to cost the same whoever is selected; "
    "heavy clients train for longer, which the examples per round show.",
    "Clients are always there and never fail.",
)


def write(
    workdir: str | os.PathLike,
    frame: Mapping[str, Any],
    config: specs.RunConfig,
    outcomes: Mapping[Any, Any],
) -> tuple[pathlib.Path, list[str]]:
    """report.json and report.html of the study.

    Args:
      workdir: of the study.
      frame: of `describe.frame`.
      config: of the study.
      outcomes: of `selection_study.collect`.

    Returns:
      The path of report.html, and the headlines of its cards.
    """
    found = selection_measure.measure(config, outcomes)
    level = config.report.level
    shown = cards(found, config)
    sections = [
        *convergence(found, config, "given"),
        objectives(found, config),
        served(found, config, "given"),
    ]
    if any(world == "correlated" for world, _, _ in found):
        sections += [
            *convergence(found, config, "correlated"),
            served(found, config, "correlated"),
        ]
    numbers = {
        "selection": [
            {"world": world, "setting": setting, "arm": arm} | _plain(one)
            for (world, setting, arm), one in found.items()
        ],
        "growth": _growths(found, config, level),
    }
    path = study.write(
        workdir,
        frame,
        shown,
        sections,
        numbers=numbers,
        methods=METHODS,
        limits=LIMITS,
    )
    return path, [f"{card.question} {card.headline}" for card in shown]


def cards(found: Found, config: specs.RunConfig) -> tuple[words.Card, ...]:
    """The answers, in the order of reading."""
    out = [faster(found, config)]
    if _has(found, "continual"):
        out.append(growing(found, config))
    out.append(ending(found, config))
    if any(world == "correlated" for world, _, _ in found):
        out.append(reversing(found, config))
    return tuple(out)


def faster(found: Found, config: specs.RunConfig) -> words.Card:
    """Whether others reach the target in fewer rounds, setting by setting."""
    target = fmt.percent(config.selection.target, 0)
    points, quicker, slower = [], [], []
    for setting in config.selection.settings:
        base = found["given", setting, "uniform"]
        parts = []
        for arm in _others(config):
            one = found["given", setting, arm]
            parts.append(
                f"{NAMES[arm]} {_reached(one)}, fewer in {one.fewer} of {one.seeds} "
                "seeds"
            )
        text = f"{_setting(setting)}: uniform {_reached(base)}; {'; '.join(parts)}."
        points.append(text)
        quicker += _named(found, config, setting, lambda one: _above(one.saved))
        slower += _named(found, config, setting, lambda one: _below(one.saved))
    headline = (
        f"Fewer rounds to {target} than uniform selection: {fmt.listed(quicker)}."
        if quicker
        else f"No rule was shown to come to {target} in fewer rounds than uniform "
        "selection."
    )
    if slower:
        headline += f" More rounds: {fmt.listed(slower)}."
    points.append(_in_examples(found, config))
    question = "Does selection by activity save rounds?"
    return words.Card(question, headline, (*points, *_few(found)))


def _in_examples(found: Found, config: specs.RunConfig) -> str:
    """The same counted in examples, which heavy clients have more of."""
    parts = []
    for setting in config.selection.settings:
        used = {
            NAMES[arm]: entry.value
            for arm in config.selection.arms
            if (entry := found["given", setting, arm].examples) is not None
        }
        if used:
            least = min(used, key=lambda name: used[name])
            parts.append(f"{least} with {used[least]:,.0f} ({SETTINGS[setting]})")
    if not parts:
        return "Counted in examples: the target was not always reached."
    return f"Counted in examples that clients go through, fewest: {fmt.listed(parts)}."


def growing(found: Found, config: specs.RunConfig) -> words.Card:
    """Whether the gain is larger where data arrive."""
    level, points, sooner, higher = config.report.level, [], [], []
    for arm in _others(config):
        change, saved = selection_measure.growth(found, "given", arm, level)
        text = f"{fmt.capital(NAMES[arm])}: the change of the final accuracy is "
        text += f"{_points(change)} against that with all data from the start"
        if saved is not None:
            text += f", rounds saved {_number(saved)} more"
        points.append(text + ".")
        if _above(saved):
            sooner.append(NAMES[arm])
        if change.lo > 0:
            higher.append(NAMES[arm])
    gains = []
    if sooner:
        gains.append(f"in rounds saved with {fmt.listed(sooner)}")
    if higher:
        gains.append(f"in final accuracy with {fmt.listed(higher)}")
    headline = (
        f"Yes, {fmt.listed(gains)}."
        if gains
        else "It was not shown to be, with any of the rules."
    )
    question = "Is the gain larger where data arrive over time?"
    return words.Card(question, headline, (*points, *_few(found)))


def ending(found: Found, config: specs.RunConfig) -> words.Card:
    """Where the arms end, with the clients that the config gives."""
    better, worse, points = _changes(found, config, "given")
    headline = f"Above uniform: {fmt.listed(better)}." if better else ""
    if worse:
        headline += f" Below uniform: {fmt.listed(worse)}."
    headline = headline.strip() or "No rule was shown to end apart from uniform."
    tone = "warn" if worse else "plain"
    return words.Card("Where does it end?", headline, points, tone=tone)


def reversing(found: Found, config: specs.RunConfig) -> words.Card:
    """Clients whose labels go with their activity."""
    better, worse, points = _changes(found, config, "correlated")
    headline = (
        f"Where labels go with activity, below uniform: {fmt.listed(worse)}."
        if worse
        else "Where labels go with activity no rule was shown to end below uniform."
    )
    if better:
        headline += f" Above it: {fmt.listed(better)}."
    later = []
    for setting in config.selection.settings:
        later += _named(
            found, config, setting, lambda one: _below(one.saved), "correlated"
        )
    if later:
        headline += f" More rounds to the target: {fmt.listed(later)}."
    points = (*points, *_never(found, config))
    tone = "warn" if worse else "plain"
    return words.Card("Where does it reverse?", headline, points, tone=tone)


def _never(found: Found, config: specs.RunConfig) -> list[str]:
    """Rules that some seeds do not come to the target with, where labels go along."""
    out = []
    for setting in config.selection.settings:
        for arm in config.selection.arms:
            one = found["correlated", setting, arm]
            if one.reached < one.seeds:
                out.append(
                    f"{_setting(setting)}, {NAMES[arm]}: {one.reached} of {one.seeds} "
                    "seeds come to the target."
                )
    return out


def _changes(found: Found, config: specs.RunConfig, world: str):
    """Rules that end above and below uniform, and a sentence for each setting."""
    better, worse, points = [], [], []
    for setting in config.selection.settings:
        base = found[world, setting, "uniform"]
        parts = [
            f"{NAMES[arm]} {_points(found[world, setting, arm].change)}"
            for arm in _others(config)
        ]
        points.append(
            f"{_setting(setting)}: uniform {_accuracy(base.final)}; {'; '.join(parts)}."
        )
        for out, side in ((better, _above), (worse, _below)):
            out += _named(
                found, config, setting, lambda one, side=side: side(one.change), world
            )
    return better, worse, tuple(points)


def _named(found: Found, config, setting: str, holds, world="given") -> list[str]:
    """The rules of which it holds in a setting, as one entry of a list."""
    names = [NAMES[a] for a in _others(config) if holds(found[world, setting, a])]
    if not names:
        return []
    every = len(names) == len(_others(config)) > 1
    return [f"{'every rule' if every else fmt.listed(names)} ({SETTINGS[setting]})"]


def _above(entry: intervals.Interval | None) -> bool:
    return entry is not None and bool(entry.lo > 0)


def _below(entry: intervals.Interval | None) -> bool:
    return entry is not None and bool(entry.hi < 0)


def convergence(
    found: Found, config: specs.RunConfig, world: str
) -> list[study.Section]:
    """Curves side by side, and the table behind them."""
    title = "Convergence"
    text = ()
    if world == "correlated":
        title = "Where labels go with activity"
        text = (
            "A tenth of the clients holds half of the labels, and nine times as much "
            "as the others do on average, who hold the other half. The test split has "
            "all labels.",
        )
    svg = curves(found, config, world)
    caption = (
        "Test accuracy by round, mean over seeds with its interval as a band. Dotted: "
        "the target. Grey lines: ends of periods."
    )
    figures = (("Accuracy by round", svg, caption),)
    rows = [table(found, config, world, s) for s in config.selection.settings]
    return [study.Section(title, text, figures, tuple(rows))]


def curves(found: Found, config: specs.RunConfig, world: str) -> str:
    """Accuracy by round, one panel a setting."""
    shown = [s for s in config.selection.settings if (world, s, "uniform") in found]
    total, periods = config.train.steps, config.federated.periods
    level = config.report.level

    def draw(fig):
        axes = fig.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)
        for ax, setting in zip(axes[:, 0], shown, strict=True):
            if setting == "continual":
                for end in range(1, periods):
                    at = -(-end * total // periods)
                    ax.axvline(at, color=drawing.MUTED, linewidth=0.6, alpha=0.6)
            target = config.selection.target
            ax.axhline(target, color=drawing.MUTED, linewidth=0.9, linestyle=":")
            for i, arm in enumerate(config.selection.arms):
                one = found[world, setting, arm]
                look = leaks.look(i)
                value, lo, hi = selection_measure.band(one, level)
                if np.isfinite(lo).all():
                    ax.fill_between(
                        one.round, lo, hi, color=look["color"], alpha=0.15, linewidth=0
                    )
                ax.plot(
                    one.round,
                    value,
                    color=look["color"],
                    linestyle=look["linestyle"],
                    label=NAMES[arm] if setting == shown[0] else None,
                )
            ax.set_title(SETTINGS[setting], fontsize=10)
            ax.set_ylabel("accuracy")
            ax.yaxis.set_major_formatter(drawing.percent_axis)
        axes[-1, 0].set_xlabel("round")
        _legend(fig, axes[0, 0])

    last = shown[-1]
    alt = "Accuracy by round; at the end, " + ", ".join(
        f"{NAMES[arm]} {fmt.percent(found[world, last, arm].final.value)}"
        for arm in config.selection.arms
    )
    return drawing.svg(f"rounds-{world}", f"{alt}.", draw, height=1 + 2.1 * len(shown))


def table(found: Found, config: specs.RunConfig, world: str, setting: str) -> str:
    """One row for each arm."""
    rows = []
    for arm in config.selection.arms:
        one = found[world, setting, arm]
        rows.append(
            (
                NAMES[arm],
                _reached(one),
                "" if arm == "uniform" else _saved(one),
                _accuracy(one.final),
                "" if arm == "uniform" else _points(one.change),
                _times(one.catch_up),
                _points(one.regret),
                f"{one.passed.value:,.0f}",
                "n/a" if one.examples is None else f"{one.examples.value:,.0f}",
            )
        )
    head = ("", "rounds to target", "saved", "final accuracy", "change", "catch-up")
    head += ("regret", "examples a round", "examples to target")
    caption = f"{_setting(setting)}, {found[world, setting, 'uniform'].seeds} seeds"
    return tables.table(head, rows, caption)


def objectives(found: Found, config: specs.RunConfig) -> study.Section:
    """What each arm really optimises."""
    rows = []
    for arm in config.selection.arms:
        one = found["given", "static_all", arm]
        rows.append(
            (
                NAMES[arm],
                fmt.percent(one.held[-1]),
                fmt.percent(one.share[-1]),
                fmt.percent(sum(one.share[:5])),
            )
        )
    head = ("", "examples of the heaviest tenth", "its weight", "of the lighter half")
    price = []
    if {"activity", "unbiased"} <= set(config.selection.arms):
        level = config.report.level
        for setting in config.selection.settings:
            one = found["given", setting, "activity"]
            other = found["given", setting, "unbiased"]
            entry = selection_measure.between(one, other, level)
            price.append(f"{_points(entry)} ({SETTINGS[setting]})")
    squared = (
        "By activity less the same with inverse probabilities, final accuracy seed "
    )
    squared += f"by seed: {fmt.listed(price)}."
    aims = [
        f"{fmt.capital(NAMES[arm])}. {found['given', 'static_all', arm].objective}"
        for arm in config.selection.arms
    ]
    return study.Section(
        "What is really optimised",
        (
            "Selection and weighting together decide which mean of the clients' losses "
            "is minimised. Selected in proportion to n and weighted by n, a client "
            "counts by the square of n; inverse probabilities take that back, at the "
            "price of a step that varies more.",
            *([squared] if price else []),
            *aims,
        ),
        tables=(tables.table(head, rows, "With all data from the start"),),
    )


def served(found: Found, config: specs.RunConfig, world: str) -> study.Section:
    """Error by tenth of activity."""
    shown = [s for s in ("static_all", "continual") if (world, s, "uniform") in found]

    def draw(fig):
        axes = fig.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)
        for ax, setting in zip(axes[:, 0], shown, strict=True):
            arms = config.selection.arms
            for i, arm in enumerate(arms):
                one, look = found[world, setting, arm], leaks.look(i)
                look = {name: look[name] for name in ("color", "marker")}
                for part, entry in enumerate(one.deciles):
                    if entry is not None:
                        x = part + 1 + 0.12 * (i - (len(arms) - 1) / 2)
                        drawing.point(ax, x, entry._asdict(), look)
                name = NAMES[arm] if setting == shown[0] else None
                ax.plot([], [], linestyle="", label=name, **look)
            ax.set_title(SETTINGS[setting], fontsize=10)
            ax.set_ylabel("error")
            ax.yaxis.set_major_formatter(drawing.percent_axis)
        axes[-1, 0].set_xlabel("tenth of the clients by examples, the lightest first")
        axes[-1, 0].set_xticks(range(1, 11))
        _legend(fig, axes[0, 0])

    alt = "Error at the end by tenth of the clients' activity."
    svg = drawing.svg(f"tenths-{world}", alt, draw, height=1 + 2.1 * len(shown))
    rows = []
    for setting in shown:
        for arm in config.selection.arms:
            one = found[world, setting, arm]
            rows.append(
                (
                    f"{SETTINGS[setting]}: {NAMES[arm]}",
                    *(
                        "n/a" if one.deciles[part] is None else _of(one, part)
                        for part in (0, 4, 9)
                    ),
                    f"{one.taken[0]:.2g}",
                    f"{one.taken[-1]:.3g}",
                )
            )
    head = ("", "error of the lightest", "fifth", "heaviest")
    head += ("rounds of a light client", "of a heavy one")
    title = "Whom the model serves"
    if world == "correlated":
        title += ", where labels go with activity"
    return study.Section(
        title,
        figures=(("Error by activity", svg, "Means over seeds, with intervals."),),
        tables=(tables.table(head, rows, "Tenths of the clients by activity"),),
    )


def _of(one: Measured, part: int) -> str:
    entry = one.deciles[part]
    assert entry is not None
    return _accuracy(entry)


def _legend(fig, ax) -> None:
    """Above the panels, in as many rows as names of this length need."""
    handles, texts = ax.get_legend_handles_labels()
    fig.legend(
        handles,
        texts,
        loc="outside upper left",
        ncols=3,
        handlelength=1.6,
        handletextpad=0.4,
        columnspacing=0.9,
        borderaxespad=0.2,
    )


def _growths(found: Found, config, level: float) -> list[dict[str, Any]]:
    if not _has(found, "continual"):
        return []
    out = []
    for world in sorted({world for world, _, _ in found}):
        for arm in _others(config):
            change, saved = selection_measure.growth(found, world, arm, level)
            more = None if saved is None else saved._asdict()
            entry = {"change": change._asdict(), "saved": more}
            out.append({"world": world, "arm": arm} | entry)
    return out


def _plain(one: Measured) -> dict[str, Any]:
    """Figures as JSON has them: intervals as dicts, inf as None."""

    def of(value):
        if isinstance(value, intervals.Interval):
            return {name: of(part) for name, part in value._asdict().items()}
        if isinstance(value, list):
            return [of(part) for part in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    return {name: of(value) for name, value in one._asdict().items()}


def _others(config: specs.RunConfig) -> list[str]:
    return [arm for arm in config.selection.arms if arm != "uniform"]


def _has(found: Found, setting: str) -> bool:
    return ("given", setting, "uniform") in found


def _few(found: Found) -> tuple[str, ...]:
    seeds = found["given", "static_all", "uniform"].seeds
    return () if seeds >= 5 else (f"{seeds} seeds are too few for a claim.",)


def _setting(name: str) -> str:
    return fmt.capital(SETTINGS[name])


def _reached(one: Measured) -> str:
    if one.to_target is None:
        return f"not always ({one.reached} of {one.seeds} seeds)"
    return _number(one.to_target)


def _saved(one: Measured) -> str:
    return "n/a" if one.saved is None else _number(one.saved)


def _times(values: Sequence[float]) -> str:
    there = [value for value in values if math.isfinite(value)]
    if not there:
        return "never"
    median = f"{np.median(there):.0f}"
    if len(there) == len(values):
        return f"{median} (median)"
    return f"{median} (median of {len(there)} of {len(values)} seeds)"


def _number(entry: intervals.Interval) -> str:
    if math.isnan(entry.lo):
        return f"{entry.value:.1f}"
    return f"{entry.value:.1f} [{entry.lo:.1f}, {entry.hi:.1f}]"


def _accuracy(entry: intervals.Interval) -> str:
    if math.isnan(entry.lo):
        return fmt.percent(entry.value)
    ends = f"{fmt.percent(entry.lo)}, {fmt.percent(entry.hi)}"
    return f"{fmt.percent(entry.value)} [{ends}]"


def _points(entry: intervals.Interval) -> str:
    text = f"{fmt.signed(100 * entry.value)} points"
    if math.isnan(entry.lo):
        return text
    return f"{text} [{fmt.signed(100 * entry.lo)}, {fmt.signed(100 * entry.hi)}]"
