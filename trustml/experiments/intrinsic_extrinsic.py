"""Experiment `intrinsic_extrinsic`: do measures of bias agree as much as they should?

    corpora with planted biases -> a masked language model each -> intrinsic scores
                                                                -> extrinsic scores
    correlation of the scores over models  against  that of the planted biases

Over real models nobody knows how much an intrinsic measure (of embeddings, of
likelihoods) ought to agree with an extrinsic one (of a classifier, of generated text).
Here it was planted: the bias that intrinsic measures look at and the one that
extrinsic measures look at have a known correlation over models, and a third bias, of
age, has none with either. Aligned measures should recover the first; measures of
another group, or on shuffled groups, should find nothing.

Example::

    intrinsic_extrinsic.run(config.from_config_dict(cfg), pathlib.Path('runs/a'))

References: https://arxiv.org/abs/2203.13928.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from trustml import specs
from trustml.experiments import (
    agreement_page,
    bias_measures,
    bias_models,
    bias_published,
    describe,
    lm_corpus,
)
from trustml.fairness import agreement


def run(config: specs.RunConfig, workdir: pathlib.Path) -> pathlib.Path:
    """Trains, measures and writes the report; minutes, so nothing is resumed.

    Returns:
      The path of report.html.
    """
    page = workdir / "report.html"
    if page.exists():
        print(f"finished already; report: {page}")
        return page
    spec = config.agreement
    planted = lm_corpus.strengths(spec.models, agreement=spec.planted, seed=config.seed)
    models = spec.models * spec.retrained
    print(f"training {models} masked language models at once ...", flush=True)
    params = bias_models.fit(config, planted)
    print(f"measuring them in {len(bias_measures.MEASURES)} ways ...", flush=True)
    each = bias_models.measure(config, params)
    again = {name: x.reshape(spec.retrained, -1) for name, x in each.items()}
    scores = {name: x_RM.mean(axis=0) for name, x_RM in again.items()}
    reliable = reliabilities(config, again)
    found = compared(config, planted, scores, reliable)
    seen = recovered(config, planted, scores)
    published = bias_published.both(config) if spec.published else None
    title = "Intrinsic and extrinsic measures of a planted bias"
    frame = describe.machine(title) | {
        "data": {
            "name": "synthetic corpora with planted biases",
            "source": "trustml.experiments.lm_corpus",
            "licence": "none: nothing is quoted",
            "counts": {"train": spec.sentences, "test": spec.tested},
        },
        "task": {"model": "masked language model", "models": spec.models},
    }
    path, headlines = agreement_page.write(
        *(workdir, frame, config, planted, scores, found, seen, reliable),
        published=published,
    )
    print("\n".join(headlines))
    print(f"report: {path}")
    return path


def compared(
    config: specs.RunConfig,
    planted: lm_corpus.Strengths,
    scores: Mapping[str, np.ndarray],
    reliable: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Every pair of an intrinsic and an extrinsic measure beside what was planted.

    Args:
      config: `agreement.kind`, `report.level` and `seed` count.
      planted: strengths of M models.
      scores: measure -> float[M], of all `bias_measures.MEASURES`.
      reliable: measure -> its reliability, if known.

    Returns:
      For each pair what `agreement.Agreement` holds and 'aligned'; 'planted', the
      correlation of the strengths that both look at, 0 where genders are shuffled;
      'covers_planted' and 'covers_zero', whether the interval holds it, and 0.
    """
    measures = {one.name: one for one in bias_measures.MEASURES}
    kind = config.agreement.kind
    table = np.stack([scores[name] for name in measures], axis=1)
    pairs = agreement.pairs(
        table,
        bias_measures.MEASURES,
        kind=kind,
        reliabilities=[reliable[name] for name in measures] if reliable else None,
        level=config.report.level,
        seed=config.seed,
    )
    found = []
    for one in pairs:
        first, second = measures[one.first], measures[one.second]
        x, y = (bias_measures.strength_of(m.name, planted) for m in (first, second))
        true = agreement.correlation(x, y, kind)
        if "shuffled" in second.data:
            true = 0.0
        extra = {
            "aligned": bias_measures.is_aligned(first, second),
            "planted": true,
            "covers_planted": bool(one.lo <= true <= one.hi),
            "covers_zero": bool(one.lo <= 0 <= one.hi),
        }
        found.append(one._asdict() | extra)
    return found


def reliabilities(
    config: specs.RunConfig, again: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Of each measure, of its means over models trained anew; empty if there are none.

    Args:
      config: `agreement.kind` counts.
      again: measure -> float[R, M].
    """
    if config.agreement.retrained < 2:
        return {}
    kind = config.agreement.kind
    return {name: agreement.reliability(x, kind) for name, x in again.items()}


def recovered(
    config: specs.RunConfig,
    planted: lm_corpus.Strengths,
    scores: Mapping[str, np.ndarray],
) -> dict[str, dict[str, float]]:
    """Of each measure, its correlation with the strength it looks at, with interval."""
    kind, found = config.agreement.kind, {}
    for one in bias_measures.MEASURES:
        x = bias_measures.strength_of(one.name, planted)
        y = one.direction * scores[one.name]
        value, lo, hi = agreement.correlation(x, y, kind), np.nan, np.nan
        if not np.isnan(value):
            level = config.report.level
            lo, hi = agreement.interval(x, y, kind, level=level, seed=config.seed)
        found[one.name] = {"value": value, "lo": float(lo), "hi": float(hi)}
    return found
