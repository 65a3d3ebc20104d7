"""The report of experiment `federate`: the model, whom it serves, what was promised.

Everything here words and draws what `trustml.experiments.federate` measured.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from trustml import intervals, specs
from trustml import task as task_lib
from trustml.data import datasets
from trustml.experiments import federation, scores
from trustml.federated import partitions, user_privacy
from trustml.federated import store as stores
from trustml.report import drawing, fmt, partition, study, tables, words

_STRATA = 10

METHODS = (
    "The test split was held by nobody. A client's own accuracy is that of the "
    "server's model on the client's training examples; a small client's is coarse.",
    "Deciles are of clients, by how many examples they hold, the smallest first.",
)
LIMITS = (
    "Clients are simulated: no message was sent, and nothing was measured on devices.",
    "Accuracy on clients' own examples is accuracy on training data.",
)


def write(
    workdir: str | os.PathLike,
    frame: Mapping[str, Any],
    config: specs.RunConfig,
    data: datasets.Dataset,
    task: task_lib.Task,
    trained: Any,
) -> tuple[pathlib.Path, scores.Scores]:
    """report.json and report.html of one run.

    Args:
      workdir: of the run.
      frame: of `describe.frame`.
      config: of the run.
      data: its data.
      task: the model.
      trained: what `federate.fit` returned.

    Returns:
      The path of report.html, and the figures of the test split.
    """
    level = config.report.level
    tested = scores.measure(task, trained.params, data, "test", level=level)
    tuned = scores.measure(task, trained.params, data, "valid", level=level)
    without = scores.baseline(data, "test", level=level)
    counts = label_counts(trained.store, len(data.label_names))
    sizes = counts.sum(axis=1)
    statistics = partitions.summary.of_counts(counts)
    own = by_client(task, trained, data.kind)
    total = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(trained.params))
    strata = deciles(sizes, own, trained.taken)
    found = {
        "kind": data.kind,
        "scores": numbers(tested),
        "valid": numbers(tuned),
        "baseline": numbers(without),
        "headline": headline(tested),
        "cell": federation.cell(config),
        "trainable_fraction": trained.sent / total,
        "bytes_per_client": 4 * trained.sent,
        "bytes_per_round": 4 * trained.sent * config.federated.cohort,
        "clients": statistics._asdict(),
        "client_accuracy": spread(own),
        "deciles": strata,
        "objective": trained.sentence,
        "privacy": None if trained.privacy is None else promised(trained),
        "utilization": trained.utilization,
        "curves": {
            "round": [row["step"] for row in trained.rows],
            "loss": [row.get("nonprivate/loss") for row in trained.rows],
            "accuracy": [row.get("nonprivate/valid_accuracy") for row in trained.rows],
        },
    }
    cards = (
        learnt(tested, without, data.kind, told_of(config, statistics, trained, total)),
        served(own, strata),
        told(trained),
    )
    sections = (
        study.Section(
            "Training",
            (trained.sentence,),
            figures=(("Rounds", curve(trained.rows, data.kind), "Validation split."),),
            tables=(score_table(tested, without, data.kind),),
        ),
        study.Section(
            "Clients",
            (
                f"{statistics.clients:,} clients hold {statistics.examples:,} examples"
                f", {statistics.mean:.3g} on average (coefficient of variation "
                f"{statistics.cv:.2f}).",
            ),
            figures=(
                (
                    "Who holds what",
                    partition.clients(counts, data.label_names),
                    "Labels of clients, the largest clients first.",
                ),
                (
                    "Whom the model serves",
                    bars(strata),
                    "Mean accuracy on their own examples, by decile of size.",
                ),
            ),
            tables=(decile_table(strata),),
        ),
    )
    path = study.write(
        workdir,
        frame,
        cards,
        sections,
        numbers=found,
        methods=METHODS,
        limits=LIMITS + _uncovered(trained),
    )
    return path, tested


def numbers(found: scores.Scores) -> dict[str, Any]:
    """Scores for report.json."""
    return {name: score._asdict() for name, score in found.items()}


def headline(found: scores.Scores) -> dict[str, Any]:
    """The one figure by which a table of runs compares this one."""
    name, score = scores.main(found)
    return {"figure": name, **score._asdict()}


def figure(found: scores.Scores) -> str:
    """The main figure in words: 'accuracy 71.0% [70.0%, 72.0%]'."""
    name, score = scores.main(found)
    return f"{scores.WORDS[name]} {fmt.estimate(score._asdict())}"


def label_counts(held: stores.ClientStore, labels: int) -> np.ndarray:
    """Examples of each label that each client holds, int[K, C]."""
    sizes = np.asarray(stores.sizes(held))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    flat = owner * labels + np.asarray(held.columns["label"]).astype(np.int64)
    return np.bincount(flat, minlength=len(sizes) * labels).reshape(-1, labels)


def by_client(task: task_lib.Task, trained: Any, kind: str) -> np.ndarray:
    """Accuracy of the server's model on each client's examples; NaN without any."""
    held = trained.store
    correct = scores.per_example(task, trained.params, held.columns, kind)
    sums = np.concatenate([[0], np.cumsum(correct)])[held.offsets]
    sizes = np.diff(held.offsets)
    with np.errstate(invalid="ignore"):
        return np.where(sizes > 0, np.diff(sums) / np.maximum(sizes, 1), np.nan)


def spread(own: np.ndarray) -> dict[str, float]:
    """Mean and quantiles over clients."""
    some = own[np.isfinite(own)]
    low, middle, high = np.quantile(some, (0.1, 0.5, 0.9))
    worst = np.sort(some)[: max(1, len(some) // 10)].mean()
    return {
        "mean": float(some.mean()),
        "p10": float(low),
        "median": float(middle),
        "p90": float(high),
        "worst_decile": float(worst),
    }


def deciles(sizes: np.ndarray, own: np.ndarray, taken: np.ndarray) -> list[dict]:
    """Clients in order of size, in ten parts: their sizes, accuracy, rounds."""
    there = np.flatnonzero(np.isfinite(own))
    order = there[np.argsort(sizes[there], kind="stable")]
    out = []
    for part in np.array_split(order, min(_STRATA, len(order))):
        mean = intervals.mean(own[part], bounds=(0, 1))
        out.append(
            {
                "clients": len(part),
                "smallest": int(sizes[part].min()),
                "largest": int(sizes[part].max()),
                "accuracy": mean._asdict(),
                "rounds": float(taken[part].mean()),
            }
        )
    return out


def promised(trained: Any) -> dict[str, Any]:
    """The promise to each client, in numbers."""
    found = trained.privacy
    return {
        "epsilon_as_run": found.epsilon_as_run,
        "delta": found.delta,
        "adjacency": found.adjacency,
        "largest_inclusion": found.rate,
        "noise_multiplier": trained.noise_multiplier,
        "accountant": found.accountant,
    }


def learnt(
    tested: scores.Scores, without: scores.Scores, kind: str, points: tuple[str, ...]
) -> words.Card:
    """How good the model is, beside what no learning gets."""
    name, score = scores.main(tested)
    least = without[name]
    return words.Card(
        "How good is the model?",
        f"{fmt.capital(figure(tested))} on the test split.",
        (
            f"{scores.BASELINES[kind]} has {fmt.estimate(least._asdict())}"
            f"{'' if score.lo > least.hi else ': the model is not clearly above it'}.",
            *points,
        ),
        tone="plain" if score.lo > least.hi else "warn",
    )


def told_of(config, statistics, trained: Any, total: int) -> tuple[str, ...]:
    """How a round went, and what was sent."""
    spec, share = config.federated, trained.sent / total
    every = "all" if trained.sent == total else f"{fmt.percent(share)} of the"
    return (
        f"{config.train.steps} rounds with {spec.cohort} of {statistics.clients:,} "
        f"clients each, selected by {spec.selection!r}, weighted by "
        f"{spec.weighting!r}.",
        f"Clients train and send {every} parameters: "
        f"{4 * trained.sent * spec.cohort / 1e6:,.3g} MB a round, before compression.",
    )


def score_table(tested: scores.Scores, without: scores.Scores, kind: str) -> str:
    """All figures of the test split beside the baseline."""
    rows = [
        (
            scores.WORDS[name],
            fmt.estimate(score._asdict()),
            fmt.estimate(without[name]._asdict()),
            f"{score.n:,}",
        )
        for name, score in tested.items()
    ]
    head = ("figure", "the model", "baseline", "of")
    return tables.table(
        head, rows, "Test split", f"Baseline: {scores.BASELINES[kind]}."
    )


def served(own: np.ndarray, strata: list[dict]) -> words.Card:
    """Whom it serves worse."""
    found = spread(own)
    small, large = (strata[i]["accuracy"]["value"] for i in (0, -1))
    return words.Card(
        "Whom does it serve worse?",
        f"The worst tenth of the clients has {fmt.percent(found['worst_decile'])}, the "
        f"median {fmt.percent(found['median'])}.",
        (
            f"The smallest tenth by examples has {fmt.percent(small)}, the largest "
            f"{fmt.percent(large)}.",
        ),
        tone="warn" if found["worst_decile"] < found["median"] - 0.2 else "plain",
    )


def told(trained: Any) -> words.Card:
    """What was promised to each client."""
    question = "What does it promise each client?"
    if trained.privacy is None:
        return words.Card(question, "Nothing: the run is not private.", (), tone="warn")
    lines = user_privacy.explain(trained.privacy).splitlines()
    found = trained.privacy
    return words.Card(
        question,
        f"ε = {found.epsilon_as_run:.3g} at δ = {found.delta:.0e}, for all that a "
        "client holds.",
        tuple(lines),
        tone="good",
    )


def curve(rows: Sequence[Mapping[str, Any]], kind: str, unit: str = "round") -> str:
    """Accuracy on the validation split by round; '' where it was measured once."""
    name = "nonprivate/valid_accuracy"
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if len(points) < 2:
        return ""

    def draw(fig):
        ax = fig.add_subplot()
        x, y = zip(*points, strict=True)
        ax.plot(x, y, color=drawing.SERIES[0], marker="o", markersize=3)
        ax.set_xlabel(unit)
        ax.set_ylabel(scores.PER_EXAMPLE_WORDS[kind])
        ax.yaxis.set_major_formatter(drawing.percent_axis)

    what = fmt.capital(scores.PER_EXAMPLE_WORDS[kind])
    alt = f"{what} from {points[0][1]:.1%} to {points[-1][1]:.1%}."
    return drawing.svg("rounds", alt, draw, height=2.8)


def bars(strata: list[dict]) -> str:
    """Accuracy by decile of size, with intervals."""

    def draw(fig):
        ax = fig.add_subplot()
        for x, one in enumerate(strata):
            entry = one["accuracy"]
            look = {"color": drawing.SERIES[0], "marker": "o"}
            drawing.point(ax, x, entry, look)
        ends = [f"{one['smallest']}\N{EN DASH}{one['largest']}" for one in strata]
        ax.set_xticks(range(len(strata)), ends, rotation=30)
        ax.set_xlabel("examples of a client")
        ax.set_ylabel("accuracy")
        ax.yaxis.set_major_formatter(drawing.percent_axis)

    return drawing.svg("deciles", "Accuracy by decile of size.", draw, height=2.8)


def decile_table(strata: list[dict]) -> str:
    """The same in numbers."""
    rows = [
        (
            f"{one['smallest']}\N{EN DASH}{one['largest']}",
            f"{one['clients']:,}",
            f"{one['accuracy']['value']:.1%} [{one['accuracy']['lo']:.1%}, "
            f"{one['accuracy']['hi']:.1%}]",
            f"{one['rounds']:.1f}",
        )
        for one in strata
    ]
    head = ("examples", "clients", "accuracy", "rounds taken part in")
    return tables.table(head, rows, "Clients by size")


def _uncovered(trained: Any) -> tuple[str, ...]:
    if trained.privacy is None:
        return ()
    return (
        "The promise covers the model. Losses, norms and accuracies in this report and "
        "in metrics.jsonl were taken from clients without noise and are not covered; "
        "nor is the choice of hyper-parameters.",
    )
