"""How many small language models a study of measures of bias trains, and on what."""

import dataclasses

from trustml import _validate


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgreementSpec:
    """Experiment 'intrinsic_extrinsic'.

    Attributes:
      models: masked language models, each with planted strengths of its own; 5 or more.
      planted: planted Spearman correlation, in [0, 1], of the bias that intrinsic
        measures look at with the one that extrinsic measures look at.
      retrained: models trained for each of them, on other draws of the same strengths;
        scores are means over them, and from two on tell a measure's reliability.
      sentences: of the corpus of a model.
      probes: neutral texts from which the classifier on frozen features learns.
      tested: texts on which that classifier is measured, half about each group.
      samples: texts that each prompt is continued to.
      draws: of contexts, for the contextual association test.
      published: whether MiniLM is measured, too, where its package is installed.
      contexts: sentences of each word that MiniLM is shown, where $TRUSTML_DATA holds
        word lists and corpora.
      kind: of correlation: 'pearson', 'spearman' or 'kendall'.
    """

    models: int = 24
    planted: float = 0.8
    retrained: int = 1
    sentences: int = 6000
    probes: int = 2000
    tested: int = 2000
    samples: int = 20
    draws: int = 500
    published: bool = False
    contexts: int = 20
    kind: str = "spearman"

    def __post_init__(self):
        _validate.integer_at_least("agreement.models", self.models, 5, "try 24")
        _validate.finite("agreement.planted", self.planted)
        if not 0 <= self.planted <= 1:
            bound = "must lie in [0, 1]"
            _validate.fail("agreement.planted", self.planted, bound, "try 0.8")
        field = "agreement.retrained"
        _validate.integer_at_least(field, self.retrained, 1, "try 2")
        for field in ("sentences", "probes", "tested"):
            value = getattr(self, field)
            _validate.integer_at_least(f"agreement.{field}", value, 100, "try 2000")
        _validate.integer_at_least("agreement.samples", self.samples, 1, "try 20")
        _validate.integer_at_least("agreement.draws", self.draws, 2, "try 500")
        _validate.integer_at_least("agreement.contexts", self.contexts, 5, "try 20")
        kinds = ("pearson", "spearman", "kendall")
        _validate.one_of("agreement.kind", self.kind, kinds)
