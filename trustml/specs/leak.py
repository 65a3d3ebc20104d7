"""How strong the planted leaks of biographies are, and how many models see them."""

import dataclasses

from trustml import _validate

TEXTS = ("biographies", "hatexplain")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeakSpec:
    """Experiment 'prediction_sensitivity'.

    Attributes:
      texts: one of `TEXTS`: synthetic biographies, or posts that people wrote.
      leaks: probabilities that gender sets the label; 3 or more, ascending.
      seeds: of texts and initialization; a classifier for each seed, leak and cue.
      examples: texts that a classifier learns from.
      tested: texts on which it is measured.
    """

    texts: str = "biographies"
    leaks: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    seeds: int = 5
    examples: int = 2000
    tested: int = 500

    def __post_init__(self):
        _validate.one_of("leak.texts", self.texts, TEXTS)
        for leak in self.leaks:
            _validate.finite("leak.leaks", leak)
        if any(not 0 <= leak <= 1 for leak in self.leaks):
            bound = "must lie in [0, 1]"
            _validate.fail("leak.leaks", self.leaks, bound, "they are probabilities")
        if len(self.leaks) < 3 or list(self.leaks) != sorted(set(self.leaks)):
            bound = "must be 3 or more, ascending"
            _validate.fail("leak.leaks", self.leaks, bound, "try (0.0, 0.5, 1.0)")
        _validate.integer_at_least("leak.seeds", self.seeds, 1, "5 give intervals")
        _validate.integer_at_least("leak.examples", self.examples, 2, "try 2000")
        _validate.integer_at_least("leak.tested", self.tested, 2, "try 500")
