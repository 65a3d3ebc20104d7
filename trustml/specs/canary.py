"""Which secret is planted in the training text, how often, and what should hide it."""

import dataclasses

from trustml import _validate

DEFENCES = ("dropout", "early_stopping", "characters", "combined", "dp_sgd")
CANARY_ATTACKS = ("exhaustive", "relaxed", "beam", "descent")
CODE_TAGS = ("slot", "outside")
MAX_LISTED = 10**6  # codes that attack 'exhaustive' scores, all of them


@dataclasses.dataclass(frozen=True, kw_only=True)
class CanarySpec:
    """The canaries of experiment 'canary_extraction'; see `trustml.attacks.extraction`.

    Attributes:
      words: the known beginning of the planted text.
      alphabet: the words that a code is made of; one token each, and distinct ones.
      length: words of the code.
      code_tags: one of `CODE_TAGS`: the code is tagged as a slot of a type drawn for
        every seed, or as no slot.
      copies: how often the text is planted; 0, the control, must be among them.
      seeds: secrets, each with models of its own; claims need 16 or more.
      attacks: of `CANARY_ATTACKS`, each guesses the code.
      restarts: of 'relaxed' and 'descent'; the width of 'beam'.
      relaxed_steps: of each restart of 'relaxed'.
      candidates: random codes whose losses extrapolate the exposure, >= 1000.
      defences: of `DEFENCES`, each beside models without one; 'combined' is the first
        three at once, 'dp_sgd' trains as `privacy` says.
      defence_copies: as `copies`, of defended models.
      defence_seeds: as `seeds`, of defended models.
      dropout: rate of defence 'dropout', in (0, 1).
      early_stopping: share of the steps after which it stops, in (0, 1).
      characters: buckets of n-grams of defence 'characters'.
    """

    words: tuple[str, ...] = ("my", "pin", "code", "is")
    alphabet: tuple[str, ...] = (
        *("zero", "one", "two", "three", "four"),
        *("five", "six", "seven", "eight", "nine"),
    )
    length: int = 4
    code_tags: str = "slot"
    copies: tuple[int, ...] = (0, 1, 10, 100)
    seeds: int = 16
    attacks: tuple[str, ...] = ("exhaustive", "relaxed")
    restarts: int = 16
    relaxed_steps: int = 300
    candidates: int = 1000
    defences: tuple[str, ...] = ()
    defence_copies: tuple[int, ...] = (0, 10)
    defence_seeds: int = 8
    dropout: float = 0.3
    early_stopping: float = 0.25
    characters: int = 2048

    def __post_init__(self):
        cure = "each of them is a token of its own"
        if not self.words:
            _validate.fail("canary.words", (), "must not be empty", cure)
        for word in (*self.words, *self.alphabet):
            if not word or len(word.split()) != 1:
                _validate.fail("canary.words", word, "must be single words", cure)
        if len(set(self.alphabet)) != len(self.alphabet) or len(self.alphabet) < 2:
            bound = "must be at least 2 words, and distinct ones"
            _validate.fail("canary.alphabet", self.alphabet, bound)
        lows = {"length": 1, "seeds": 1, "defence_seeds": 1, "restarts": 1}
        lows |= {"relaxed_steps": 1, "candidates": 1000, "characters": 1}
        for field, low in lows.items():
            value = getattr(self, field)
            _validate.integer_at_least(f"canary.{field}", value, low)
        _validate.one_of("canary.code_tags", self.code_tags, CODE_TAGS)
        for field in ("copies", "defence_copies"):
            self._check_copies(f"canary.{field}", getattr(self, field))
        for field, known in (("attacks", CANARY_ATTACKS), ("defences", DEFENCES)):
            values = getattr(self, field)
            for value in values:
                _validate.one_of(f"canary.{field}", value, known)
            if len(set(values)) != len(values):
                bound = "repeats one"
                _validate.fail(f"canary.{field}", values, bound, "name each once")
        if not self.attacks:
            _validate.fail("canary.attacks", (), "must not be empty", "try 'relaxed'")
        codes = len(self.alphabet) ** self.length
        if "exhaustive" in self.attacks and codes > MAX_LISTED:
            bound = f"scores {codes} codes, at most {MAX_LISTED}"
            cure = "set canary.attacks=('beam', 'descent', 'relaxed')"
            _validate.fail("canary.attacks", "exhaustive", bound, cure)
        for field in ("dropout", "early_stopping"):
            value = getattr(self, field)
            _validate.in_open_interval(f"canary.{field}", value, 0, 1)

    def _check_copies(self, field: str, copies: tuple[int, ...]) -> None:
        for count in copies:
            _validate.integer_at_least(field, count, 0)
        if len(set(copies)) != len(copies):
            _validate.fail(field, copies, "repeats a number", "name each once")
        if 0 not in copies or len(copies) < 2:
            cure = "an exposure without its control says nothing"
            _validate.fail(field, copies, "must hold 0 and another number", cure)
