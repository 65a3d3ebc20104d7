"""The report of experiment `federate`: the model, whom it serves, what was promised.

Everything here words and draws what `trustml.experiments.federate` measured.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from trustml import intervals, specs
from trustml import task as task_lib
from trustml.data import datasets
from trustml.experiments import client_inequality, federation, scores
from trustml.federated import (
    continual,
    evaluation,
    feed,
    partitions,
    stragglers,
    user_privacy,
)
from trustml.federated import store as stores
from trustml.report import drawing, fmt, partition, study, tables, words

_STRATA = 10

N_MIN = 5  # examples that a client needs to count in quantiles

METHODS = (
    "The test split was held by nobody.",
    "Deciles are of clients, by their number of examples, the smallest first.",
)
SECRET = "Noise and cohorts were secret: their key came from the operating system."
REPRODUCIBLE = (
    "Noise and cohorts are reproducible, not secret: against anyone who knows "
    "privacy.noise_seed the promise does not hold. Train with a secret seed before "
    "giving a model away."
)
LIMITS = (
    "Clients are simulated: no message was sent, and nothing was measured on devices.",
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
    strata = deciles(sizes, own.server, trained.taken, level)
    apart = personalised(own)
    spread = client_inequality.measure(own.server, own.examples, data.kind, level)
    found = {
        "kind": data.kind,
        "scores": numbers(tested),
        "valid": numbers(tuned),
        "baseline": numbers(without),
        "headline": headline(tested),
        "what": scores.WORDS[headline(tested)["figure"]],
        "cell": federation.cell(config),
        "trainable_fraction": trained.sent / total,
        "bytes_per_client": 4 * trained.sent,
        "bytes_per_round": 4 * trained.sent * config.federated.cohort,
        "clients": statistics._asdict(),
        "client_accuracy": summarised(
            own.server, own.examples, own.n_min, taken=trained.taken, activity=sizes
        ),
        "personal_accuracy": apart,
        "client_fairness": None if spread is None else spread._asdict(),
        "client_accuracy_on": _on(config, trained),
        "deciles": strata,
        "objective": trained.sentence,
        "absence": missing(trained, sizes),
        "privacy": None if trained.privacy is None else promised(config, trained),
        "utilization": trained.utilization,
        "curves": {
            "round": [row["step"] for row in trained.rows],
            "loss": [row.get("nonprivate/loss") for row in trained.rows],
            "accuracy": [row.get("nonprivate/valid_accuracy") for row in trained.rows],
        },
    }
    cards = (
        learnt(tested, without, data.kind, told_of(config, statistics, trained, total)),
        served(own, strata, apart, f"their own {_kind(config, trained)}"),
        told(config, trained),
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
            _holdings(config, statistics),
            figures=(
                (
                    "Who holds what",
                    partition.clients(counts, data.label_names),
                    "Labels of clients, the largest clients first.",
                ),
                (
                    "Whom the model serves",
                    bars(strata),
                    f"Mean accuracy on their own {_kind(config, trained)}, by decile "
                    "of size.",
                ),
            ),
            tables=(decile_table(strata), client_inequality.table(spread, level)),
        ),
        *absences(trained, sizes),
    )
    path = study.write(
        workdir,
        frame,
        cards,
        sections,
        numbers=found,
        methods=(*METHODS, _measured(config, own, trained)),
        limits=(
            *LIMITS,
            *_on_training(config, trained),
            *_uncovered(config, data, trained),
            *_aborted(config, trained),
            *_clamped(trained),
            *_lost(trained),
        ),
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


class Clients(NamedTuple):
    """Accuracy on each client's examples, float64[K]; NaN where it has none.

    Attributes:
      server: of the server's model.
      own: of the clients' own models; None where they have none. NaN for clients that
        trained in no round.
      examples: int64[K], that these are means over.
      n_min: examples that a client needs to count in quantiles.
    """

    server: np.ndarray
    own: np.ndarray | None
    examples: np.ndarray
    n_min: int


def by_client(task: task_lib.Task, trained: Any, kind: str) -> Clients:
    """Accuracies on what clients kept out, or where nothing was, on what they hold."""
    held = trained.store if trained.tests is None else trained.tests
    metrics = {"accuracy": task.metrics[scores.PER_EXAMPLE[kind]]}
    sizes = np.asarray(stores.sizes(held)).astype(np.int64)
    device = jax.devices()[:1]

    def accuracies(own, memory):
        evaluate = evaluation.make(
            task.predict, metrics, jit=jax.jit, own=own, devices=device
        )
        found = evaluate(params, source.place, sizes, memory=memory)
        return found.values["accuracy"]

    params = jax.device_put(jax.device_get(trained.params), device[0])
    source = feed.open(held)
    server, own = accuracies(None, ()), None
    if trained.personal is not None:
        own = accuracies(trained.personal, trained.memory)
        own = np.where(trained.trained_in > 0, own, np.nan)
    return Clients(server, own, sizes, N_MIN if sizes.max() >= N_MIN else 1)


def deciles(
    sizes: np.ndarray, own: np.ndarray, taken: np.ndarray, level: float = 0.95
) -> list[dict]:
    """Clients in order of size, in ten parts: their sizes, accuracy, rounds."""
    out = []
    for part in evaluation.by_activity(sizes, np.isfinite(own), _STRATA):
        mean = intervals.mean(own[part], level, bounds=(0, 1))
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


def personalised(found: Clients) -> dict[str, Any] | None:
    """The server's model and their own, on the same clients: those that trained."""
    if found.own is None or not np.isfinite(found.own).any():
        return None
    both = np.isfinite(found.own)
    examples = np.where(both, found.examples, 0)
    models = {"server": found.server, "own": found.own}
    return {
        name: summarised(np.where(both, values, np.nan), examples, found.n_min)
        for name, values in models.items()
    }


def summarised(values, examples, n_min, **more) -> dict[str, Any] | None:
    """`evaluation.summary` as numbers of a report, without its deciles."""
    made = evaluation.summary(values, examples, n_min=n_min, **more)
    if made is None:
        return None
    return {k: v for k, v in made._asdict().items() if k != "deciles"}


def promised(config: specs.RunConfig, trained: Any) -> dict[str, Any]:
    """The promise to each client, in numbers."""
    found = trained.privacy
    return {
        "epsilon_as_run": found.epsilon_as_run,
        "delta": found.delta,
        "adjacency": found.adjacency,
        "largest_inclusion": found.rate,
        "noise_multiplier": trained.noise_multiplier,
        "accountant": found.accountant,
        "noise_secret": config.privacy.noise_seed is None,
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
        f"clients each, selected by {spec.selection!r}, {_together(spec)}.",
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


def served(own: Clients, strata: list[dict], apart: Any, on: str) -> words.Card:
    """Whom it serves worse."""
    found = summarised(own.server, own.examples, own.n_min)
    if found is None:
        question, said = "Whom does it serve worse?", "No client has an example."
        return words.Card(question, said, (), tone="warn")
    small, large = (fmt.estimate(strata[i]["accuracy"]) for i in (0, -1))
    personal = ()
    if apart is not None:
        means = [fmt.percent(apart[name]["client_mean"]) for name in ("own", "server")]
        personal = (
            f"Clients' own models have {means[0]} on average over the clients that "
            f"trained, the server's {means[1]} there.",
        )
    return words.Card(
        "Whom does it serve worse?",
        f"The worst tenth of the clients has {fmt.percent(found['worst_decile'])}, the "
        f"median {fmt.percent(found['median'])}.",
        (
            f"The smallest tenth by examples has {small}, the largest {large}, on "
            f"{on}.",
            *personal,
        ),
        tone="warn" if found["worst_decile"] < found["median"] - 0.2 else "plain",
    )


def told(config: specs.RunConfig, trained: Any) -> words.Card:
    """What was promised to each client."""
    question = "What does it promise each client?"
    if trained.privacy is None:
        return words.Card(question, "Nothing: the run is not private.", (), tone="warn")
    lines = user_privacy.explain(trained.privacy).splitlines()
    found, secret = trained.privacy, config.privacy.noise_seed is None
    lines.append(SECRET if secret else REPRODUCIBLE)
    return words.Card(
        question,
        f"ε = {found.epsilon_as_run:.3g} at δ = {found.delta:.0e}, for all that a "
        "client holds.",
        tuple(lines),
        tone="good" if secret else "warn",
    )


def missing(trained: Any, sizes: np.ndarray) -> dict[str, Any] | None:
    """What became of those that were asked; None where nobody can be missing."""
    if not trained.absent.expected:
        return None
    tally, often = trained.tally, trained.taken / max(trained.rounds, 1)
    seconds = trained.absent.step_seconds(np.arange(len(sizes)))
    parts = min(_STRATA, len(sizes))
    return {
        "sentence": trained.absent.sentence,
        "fates": dict(zip(stragglers.FATES, tally.fates.tolist(), strict=True)),
        "virtual_seconds": float(tally.seconds),
        "wasted_share": float(tally.wasted / max(tally.computed, 1)),
        "heard_by_size": continual.by_decile(often, sizes, parts).tolist(),
        "heard_by_speed": continual.by_decile(often, -seconds, parts).tolist(),
    }


def absences(trained: Any, sizes: np.ndarray) -> tuple[study.Section, ...]:
    """Who was asked and not heard, as a section; none where nobody can be missing."""
    found = missing(trained, sizes)
    if found is None:
        return ()
    asked = max(sum(found["fates"].values()), 1)
    fates = [
        (name.replace("_", " "), f"{many:,}", fmt.percent(many / asked))
        for name, many in found["fates"].items()
    ]
    pairs = zip(found["heard_by_size"], found["heard_by_speed"], strict=True)
    chances = [
        (f"{number + 1}", fmt.percent(size), fmt.percent(speed))
        for number, (size, speed) in enumerate(pairs)
    ]
    slowest, fastest = found["heard_by_speed"][0], found["heard_by_speed"][-1]
    said = (
        f"{fmt.capital(trained.absent.sentence)}. The rounds took "
        f"{found['virtual_seconds']:,.0f} virtual seconds, in which a client of mean "
        f"speed makes one step a second; {fmt.percent(found['wasted_share'])} of the "
        "steps were made by clients that were not heard.",
        f"A client of the slowest tenth was heard in {fmt.percent(slowest)} of the "
        f"rounds, one of the fastest in {fmt.percent(fastest)}: what is optimised "
        "moves with them, and the sentence on the objective does not know of it.",
    )
    return (
        study.Section(
            "Who was not heard",
            said,
            tables=(
                tables.table(("fate", "clients", "share"), fates, "Of those asked"),
                tables.table(
                    ("tenth", "by examples", "by speed"),
                    chances,
                    "Share of rounds in which a client was heard",
                    "From the smallest and the slowest to the largest and the fastest.",
                ),
            ),
        ),
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
        lo, hi = ax.get_ylim()
        ax.set_ylim(max(lo, -0.02), min(hi, 1.02))
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


def _kind(config: specs.RunConfig, trained: Any) -> str:
    if trained.tests is not None:
        return "held-out examples"
    if config.federated.retention != "keep_all":
        return "examples, kept or not"
    return "training examples"


def _on(config: specs.RunConfig, trained: Any) -> str:
    if trained.tests is not None:
        return "held out"
    return "training" if config.federated.retention == "keep_all" else "all that came"


def _measured(config: specs.RunConfig, own: Clients, trained: Any) -> str:
    return (
        f"A client's own accuracy is on its {_kind(config, trained)}, a small client's "
        f"is coarse: quantiles are over clients with {own.n_min} or more of them."
    )


def _together(spec: specs.FederatedSpec) -> str:
    """What becomes of messages."""
    if not spec.robust:
        return f"weighted by {spec.weighting!r}"
    bears = "fewer than half" if spec.robust == "median" else f"{spec.attackers}"
    return f"put together by {spec.robust!r}, which bears {bears} of them lying"


def _on_training(config: specs.RunConfig, trained: Any) -> tuple[str, ...]:
    if trained.tests is not None:
        return ()
    if config.federated.retention != "keep_all":
        return (
            "Accuracy on clients' own examples is on all that came to them, whether "
            "they kept it and trained on it or not.",
        )
    return ("Accuracy on clients' own examples is accuracy on training data.",)


def _aborted(config: specs.RunConfig, trained: Any) -> tuple[str, ...]:
    many = sum(row.get("nonprivate/aborted", 0) for row in trained.rows)
    if not many:
        return ()
    return (
        f"In {many:,} of {trained.rounds:,} rounds the model stayed as it was: too few "
        f"clients were heard for federated.robust={config.federated.robust!r} to bear "
        f"{config.federated.attackers} that lie. Raise federated.cohort.",
    )


def _holdings(config: specs.RunConfig, statistics) -> tuple[str, ...]:
    """Who holds how much, and for how long."""
    spec, mean = config.federated, f"{statistics.mean:.3g}"
    often = f"(coefficient of variation {statistics.cv:.2f})"
    many, clients = f"{statistics.examples:,}", f"{statistics.clients:,}"
    if spec.periods == 1 and spec.retention == "keep_all":
        return (f"{clients} clients hold {many} examples, {mean} on average {often}.",)
    parts = f"in {spec.periods} equal parts over the run"
    if spec.periods == 1:
        parts = "all before the first round"
    kept = {
        "keep_all": "and stay",
        "fifo": f"and a client keeps the newest {spec.storage}",
        "reservoir": f"and a client keeps {spec.storage} of them, each as likely",
        "class_balanced": f"and a client keeps {spec.storage}, labels in balance",
    }[spec.retention]
    return (
        f"{many} examples come to {clients} clients, {mean} on average {often}: "
        f"{parts}, {kept}. Sizes here count all that came.",
    )


def _clamped(trained: Any) -> tuple[str, ...]:
    many = sum(row.get("nonprivate/clamped", 0) for row in trained.rows)
    if not many:
        return ()
    return (
        f"Sums in integers clamped {many:,} coordinates of messages: they are wrong "
        "there. Lower the learning rate or federated.cohort, or set "
        "federated.exact=False.",
    )


def _lost(trained: Any) -> tuple[str, ...]:
    """Sentences on what was no number: messages, and the model itself."""
    many = sum(row.get("nonprivate/nonfinite", 0) for row in trained.rows)
    leaves = jax.tree.leaves(trained.params)
    broken = not all(np.isfinite(np.asarray(x)).all() for x in leaves)
    cure = "lower the learning rates, or look at the clients' data"
    said = []
    if many:
        said.append(
            f"{many:,} messages of clients held NaN or infinities and were left out: "
            f"{cure}."
        )
    if broken:
        said.append(f"The model that was trained is not finite; {cure}.")
    return tuple(said)


def _uncovered(config: specs.RunConfig, data: Any, trained: Any) -> tuple[str, ...]:
    if trained.privacy is None:
        return ()
    built = ""
    if config.data.vocabulary == "train" and "tokens" in data.train:
        built = "the vocabulary, which was built from clients' texts, "
    return (
        "The promise covers the model. Losses, norms and accuracies in this report and "
        "in metrics.jsonl were taken from clients without noise and are not covered; "
        f"nor are {built}who took part how often and how many did in a round, which "
        "the promise takes for hidden, and the choice of hyper-parameters.",
    )
