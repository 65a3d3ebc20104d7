"""By whom a classifier is measured, and how its gaps are given intervals."""

import dataclasses

from trustml import _validate

SPLITS = ("valid", "test")
BACKGROUNDS = ("all", "targeted")
TEMPLATES = ("toxicity",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FairnessSpec:
    """What experiment 'fairness' reports.

    Attributes:
      attributes: groups of the data to report by; () takes all but the length of texts
        and `score_column`. Groups that may overlap are told by the data themselves.
      intersections: report by every pair of attributes as well.
      splits: whose examples are measured; none that anything was chosen on.
      positive: the label whose guesses are counted; '' is the last one.
      favourable: the label that is good to get; '' is `positive`. Signed gaps are of
        it, as AIF360 has them.
      reference: groups that others are compared with, such as 'sex=Male'; of an
        attribute that is not named, the largest group.
      replicates: of bootstraps and of shuffled groups.
      least: examples below which a group is flagged and left out of gaps.
      least_of_label: positives, or negatives, below which it is.
      score_column: a group column that holds somebody else's score in ascending steps,
        measured beside the model on all splits; '' has none.
      score_at_least: name of the step from which on it means positive.
      background: of areas under the ROC by identity, one of `BACKGROUNDS`: texts that
        an identity is set against, 'all' others, or those that name another one.
      templates: '' or one of `TEMPLATES`: phrases with identity terms, on which the
        model is measured as well.
      examples: wrong guesses of positive to show from texts; 0 shows none.
      mask: show only the first letters of words, since such texts offend.
    """

    attributes: tuple[str, ...] = ()
    intersections: bool = True
    splits: tuple[str, ...] = ("test",)
    positive: str = ""
    favourable: str = ""
    reference: tuple[str, ...] = ()
    replicates: int = 2000
    least: int = 30
    least_of_label: int = 10
    score_column: str = ""
    score_at_least: str = ""
    background: str = "all"
    templates: str = ""
    examples: int = 0
    mask: bool = True

    def __post_init__(self):
        for split in self.splits:
            cure = "a model is not measured on what it was trained on"
            _validate.one_of("fairness.splits", split, SPLITS, cure)
        if not self.splits or len(set(self.splits)) < len(self.splits):
            bound = "must name a split, each once"
            _validate.fail("fairness.splits", self.splits, bound, "try ('test',)")
        if len(set(self.attributes)) < len(self.attributes):
            bound = "repeats an attribute"
            _validate.fail("fairness.attributes", self.attributes, bound)
        for entry in self.reference:
            if "=" not in entry:
                cure = "write attribute=group, such as sex=Male"
                bound = f"has {entry!r}, which names no group of an attribute"
                _validate.fail("fairness.reference", self.reference, bound, cure)
        _validate.integer_at_least(
            "fairness.replicates", self.replicates, 100, "2000 is usual"
        )
        _validate.integer_at_least("fairness.least", self.least, 1, "30 is usual")
        _validate.integer_at_least("fairness.least_of_label", self.least_of_label, 0)
        _validate.integer_at_least("fairness.examples", self.examples, 0)
        _validate.one_of("fairness.background", self.background, BACKGROUNDS)
        if self.templates:
            field, cure = "fairness.templates", "'' does without"
            _validate.one_of(field, self.templates, TEMPLATES, cure)
        if bool(self.score_column) != bool(self.score_at_least):
            bound = f"does not go with fairness.score_column={self.score_column!r}"
            cure = "set both, or neither"
            _validate.fail("fairness.score_at_least", self.score_at_least, bound, cure)
