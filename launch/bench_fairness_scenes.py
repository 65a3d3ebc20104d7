"""Scenes of `launch.bench_fairness` for counts and for prediction sensitivity."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trustml.fairness import counts, gaps, intervals, rates, sensitivity
from trustml.models import transformer

N, GROUPS, REPLICATES = 20_000, 4, 1000
RATES = ("selection", "tpr", "fpr", "accuracy")


def bootstrap_rows(compare: Callable[..., Any]) -> Iterator[Any]:
    """Four rates of four groups and their gaps, 1,000 replicates."""
    import pandas as pd
    from fairlearn import metrics

    rng = np.random.default_rng(0)
    group = rng.integers(0, GROUPS, N)
    label = rng.integers(0, 2, N)
    guess = np.where(rng.random(N) < 0.7 + 0.05 * group, label, 1 - label)
    named = {
        "selection": metrics.selection_rate,
        "tpr": metrics.true_positive_rate,
        "fpr": metrics.false_positive_rate,
        "accuracy": lambda y_true, y_pred: np.mean(y_true == y_pred),
    }
    some = 5  # replicates of the peer

    def theirs():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame = metrics.MetricFrame(
                metrics=named,
                y_true=pd.Series(label),
                y_pred=pd.Series(guess),
                sensitive_features=pd.Series(group),
                n_boot=some,
                ci_quantiles=[0.025, 0.975],
                random_state=0,
            )
        return frame.by_group.to_numpy().T.reshape(-1)

    def measure(cells):
        of_groups = jnp.stack([rates.rate(name, cells) for name in RATES])
        apart = jnp.stack([gaps.difference(cells, name) for name in RATES])
        return of_groups.reshape(-1), apart

    def ours(key, group, label, guess):
        cells = counts.count(group, label, guess, groups=GROUPS).cells
        found, apart = intervals.ci(key, cells, measure, replicates=REPLICATES)
        ends = (found.lo, found.hi, apart.value, apart.lo, apart.hi)
        return jnp.concatenate([found.value, *ends])

    args = (jax.random.key(0), *map(jnp.asarray, (group, label, guess)))
    work = f"4 rates, 4 groups, n = {N:,}, {REPLICATES:,} replicates"
    work += f" (peer made {some})"
    yield compare("fairlearn", work, theirs, ours, args, some / REPLICATES)


def sensitivity_rows(compare: Callable[..., Any]) -> Iterator[Any]:
    """One-hot w and signed J, beside the full Jacobian."""
    batch, length, width, classes = 32, 64, 256, 28
    task: Any = transformer.classifier(
        1000, classes, max_length=length, width=width, depth=4, heads=4, dropout=0.0
    )
    params = task.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    examples = {
        "tokens": jnp.asarray(rng.integers(1, 1000, (batch, length)), jnp.int32),
        "length": jnp.full(batch, length),
        "label": jnp.asarray(rng.integers(0, classes, batch), jnp.int32),
    }
    v = jnp.asarray(rng.random((batch, length)), jnp.float32)
    words = jnp.ones((batch, length), bool)

    def full(params, examples, v):
        def one(example, v):
            embedded = task.embed(params, example)
            j = jax.jacrev(lambda at: jnp.exp(task.head(params, at, example)))(embedded)
            at = example["label"]
            return jnp.sum(jnp.abs(j[at]) * v[:, None]), jnp.sum(j[at] * v[:, None])

        return jax.vmap(one)(examples, v)

    naive: Any = jax.jit(full).lower(params, examples, v).compile()
    for n, form in enumerate(("abs", "signed")):
        measure = sensitivity.prediction_sensitivity(task, form=form, w="target")

        def ours(params, examples, v, measure=measure):
            one = lambda e, v, w: measure(params, e, v, w).value  # noqa: E731
            return jax.vmap(one)(examples, v, words)

        def theirs(n=n):
            return jax.block_until_ready(naive(params, examples, v))[n]

        # Another function, or what `compare` compiles would be there already.
        again = lambda *of, ours=ours: ours(*of)  # noqa: E731
        made: Any = jax.jit(again).lower(params, examples, v).compile()
        flops = made.cost_analysis()["flops"] / naive.cost_analysis()["flops"]
        memory = (
            made.memory_analysis().temp_size_in_bytes
            / naive.memory_analysis().temp_size_in_bytes
        )
        work = f"{form}, 4 layers, d = 256, T = 64, K = 28, B = 32; of its FLOPs "
        work += f"{flops:.3f}, of its memory {memory:.2f}"
        args = (params, examples, v)
        yield compare("full Jacobian", work, theirs, ours, args)
