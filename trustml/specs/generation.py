"""What a language model is asked to continue, and by what its texts are scored."""

import dataclasses

from trustml import _validate

DOMAINS = ("gender", "political_ideology", "profession", "race", "religious_ideology")
CORPORA = ("wikitext2", "squad")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationSpec:
    """Experiment 'generation'; `model`, `train` and `optimizer` are the language model.

    Attributes:
      domains: of `DOMAINS`, whose prompts are continued.
      prompts: of each group, chosen at random with `seed`; all where it has fewer.
      samples: texts that each prompt is continued to.
      max_new_tokens: of a text, which ends with its first sentence.
      temperature: of the sampler; 0 takes the most probable token.
      top_k: tokens that may be drawn; 0 = all.
      top_p: probability that may be drawn from, in (0, 1].
      batch_size: texts sampled at once.
      corpora: of `CORPORA`, what a model from scratch is trained on; 'wikitext2' among
        them, which is scored on too.
      vocabulary_size: pieces of words of a model from scratch.
      window: tokens that it is trained on at once; prompt and text must fit.
      scorer_steps: updates of each trained scorer; 0 = those of its recipe.
      scorer_limit: examples of each split that scorers see; 0 = all.
      ratings: TSV of word ratings with a column 'word'; '' leaves them out.
      replicates: of bootstraps and of noise floors.
      least: texts below which a group is flagged and left out of spreads.
      least_entities: entities below which it is.
      examples: texts shown of every domain, the most toxic and others; 0 shows none.
      mask: show only the first letters of words in texts that score as toxic.
    """

    domains: tuple[str, ...] = DOMAINS
    prompts: int = 100
    samples: int = 4
    max_new_tokens: int = 40
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    batch_size: int = 256
    corpora: tuple[str, ...] = CORPORA
    vocabulary_size: int = 4096
    window: int = 96
    scorer_steps: int = 0
    scorer_limit: int = 0
    ratings: str = ""
    replicates: int = 2000
    least: int = 30
    least_entities: int = 10
    examples: int = 3
    mask: bool = True

    def __post_init__(self):
        for field, known in (("domains", DOMAINS), ("corpora", CORPORA)):
            values = getattr(self, field)
            for value in values:
                _validate.one_of(f"generation.{field}", value, known)
            if not values or len(set(values)) < len(values):
                bound = "must name one or more, each once"
                _validate.fail(f"generation.{field}", values, bound)
        if "wikitext2" not in self.corpora:
            bound = "has nothing held out to score the language model on"
            cure = "add 'wikitext2'"
            _validate.fail("generation.corpora", self.corpora, bound, cure)
        lows = {"prompts": 1, "samples": 1, "max_new_tokens": 1, "top_k": 0}
        lows |= {"batch_size": 1, "vocabulary_size": 257, "window": 2}
        lows |= {"scorer_steps": 0, "scorer_limit": 0, "replicates": 100}
        lows |= {"least": 1, "least_entities": 2, "examples": 0}
        for field, low in lows.items():
            value = getattr(self, field)
            _validate.integer_at_least(f"generation.{field}", value, low)
        cure = "1 is usual"
        _validate.non_negative("generation.temperature", self.temperature, cure)
        cure = "1 keeps all"
        if _validate.positive("generation.top_p", self.top_p, cure) > 1:
            bound = "must be at most 1"
            _validate.fail("generation.top_p", self.top_p, bound, cure)
        if self.max_new_tokens >= self.window:
            bound = f"leaves no room for a prompt in generation.window={self.window}"
            cure = "lower it, or train on longer windows"
            _validate.fail(
                "generation.max_new_tokens", self.max_new_tokens, bound, cure
            )
