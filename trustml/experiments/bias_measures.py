"""What the study `intrinsic_extrinsic` measures, declared: direction, group, data.

Intrinsic measures look at the probed professions of `lm_corpus`, extrinsic ones at the
applied. `bias_models.measure` computes them.

Example::

    planted = lm_corpus.strengths(24, agreement=0.8, seed=0)
    bias_measures.strength_of('LPBS', planted)       # float64[24], of gender, probed
"""

import numpy as np

from trustml.experiments import lm_corpus
from trustml.fairness import agreement

_CONTEXTS = "neutral sentences with probed professions"
_BIOS = "texts about applied professions"
MEASURES = (
    agreement.Measure(
        "CEAT", "intrinsic", 1, "association", "gender", _CONTEXTS, "state of the word"
    ),
    agreement.Measure(
        "SEAT", "intrinsic", 1, "association", "gender", _CONTEXTS, "mean of states"
    ),
    agreement.Measure(
        *("LPBS", "intrinsic", 1, "stereotype", "gender"),
        *("templates with probed professions", "S is a P who uses the O"),
    ),
    agreement.Measure(
        *("preferred pairs", "intrinsic", 1, "stereotype", "gender"),
        *("pairs with probed professions", "pseudo-log-likelihood"),
    ),
    agreement.Measure(
        *("TPR gap", "extrinsic", 1, "performance", "gender", _BIOS),
        "frozen features, linear",
    ),
    agreement.Measure(
        *("generated polarity", "extrinsic", 1, "stereotype", "gender"),
        *("prompts with applied professions", "fill-in, sampled"),
    ),
    agreement.Measure(
        *("TPR gap, age", "extrinsic", 1, "performance", "age", _BIOS),
        "frozen features, linear",
    ),
    agreement.Measure(
        *("TPR gap, shuffled", "extrinsic", 1, "performance", "gender"),
        *(f"{_BIOS}, gender shuffled", "frozen features, linear"),
    ),
)


def strength_of(name: str, planted: lm_corpus.Strengths) -> np.ndarray:
    """The planted strengths that a measure looks at, float64[M]."""
    (one,) = [one for one in MEASURES if one.name == name]
    if one.family == "intrinsic":
        return planted.probed
    return planted.age if one.group == "age" else planted.applied


def is_aligned(first: agreement.Measure, second: agreement.Measure) -> bool:
    """Whether two measures look at the same group in data that tell it truly."""
    return first.group == second.group and "shuffled" not in second.data
