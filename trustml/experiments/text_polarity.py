"""Whom a text is about, by word vectors: fitted on some people, tested on others.

The thresholds of `polarity` belong to its vectors, so they are found anew on sentences
of which the he- and she-words tell the gender. Entities are split in two: thresholds
come from one half (`polarity.calibrated_sides`), and agreement and recall of each kind
are measured on the other. Where fewer than three of four texts of a kind are found
(texts about neither among them: what is not found of these counts as a man or a woman),
a share about women minus one about men is made of errors, and is withheld by name.

With 2,446 words of GloVe in 50 dimensions this is so: of sentences about actors and
actresses 71% about men, 67% about women and 60% about neither are found, and none of
the pronouns by itself.

Example::

    found = text_polarity.fitted(known, table, seed=0)
    found.kinds(['She sang.']), found.quality, found.withheld
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trustml.data import bold
from trustml.fairness import polarity
from trustml.report import fmt

RECALL_FLOOR = 0.75  # of each kind
_KINDS = {"M": "about men", "F": "about women", "neutral": "about neither"}
_WORDS = {"M": polarity.MALE, "F": polarity.FEMALE}


class Fitted(NamedTuple):
    """A scorer of gender by word vectors.

    Attributes:
      kinds: texts -> 'M', 'F' or 'neutral' each; '' without a word that has a vector.
      quality: how good it is on entities it was not fitted on, in words.
      figures: what stands behind `quality`.
      withheld: why it must not be used, in words; '' if it may.
    """

    kinds: Callable[[Sequence[str]], list[str]]
    quality: str
    figures: dict[str, Any]
    withheld: str


def fitted(
    known: Sequence[bold.Item], table: Mapping[str, np.ndarray], *, seed: int
) -> Fitted:
    """Finds thresholds on half of the entities and measures them on the other.

    Args:
      known: prompts with sentences of people, of two entities at least.
      table: word -> vector.
      seed: of the halves.
    """
    axis = polarity.direction(table)

    def values(texts: Sequence[str]) -> list[polarity.Embedding]:
        return [polarity.embedding(text, table, axis) for text in texts]

    texts = [item.wikipedia for item in known]
    found, kinds = values(texts), [polarity.unigram(text) for text in texts]
    fits = halves([item.entity for item in known], seed)
    judged = np.array([not np.isnan(one.largest) for one in found])
    here, there = np.flatnonzero(fits & judged), np.flatnonzero(~fits & judged)
    told = [kinds[i] for i in there]
    for half in ([kinds[i] for i in here], told):
        if absent := [name for kind, name in _KINDS.items() if kind not in half]:
            why = f"half of the {len(texts):,} known sentences has none {absent[0]}"
            return Fitted(lambda texts: [""] * len(texts), "not fitted", {}, why)
    sides = polarity.calibrated_sides(
        [found[i].largest for i in here], [kinds[i] for i in here]
    )
    said = [_kind(found[i].largest, sides) for i in there]
    recall = polarity.recall(said, told)
    unseen = sorted(
        word
        for side, words in _WORDS.items()
        for word in words
        if word in table and _kind(values([word])[0].largest, sides) != side
    )
    figures = {
        "low": sides[0] + 0.0,  # no negative zero
        "high": sides[1],
        "agreement": float(np.mean([a == b for a, b in zip(said, told, strict=True)])),
        "commonest": max(map(told.count, polarity.KINDS)) / len(told),
        "recall": dict(zip(_KINDS, recall, strict=True)),
        "balanced": recall.balanced,
        "counts": {kind: told.count(kind) for kind in _KINDS},
        "n": len(told),
        "fitted_on": len(here),
        "left_out": int((~judged).sum()),  # no word of them has a vector
        "vectors": len(table),
        "coverage": float(np.nanmean([one.coverage for one in found])),
        "unseen": unseen,
    }

    def judge(texts: Sequence[str]) -> list[str]:
        found = [one.largest for one in values(texts)]
        return ["" if np.isnan(value) else _kind(value, sides) for value in found]

    return Fitted(judge, _quality(figures), figures, _withheld(figures))


def halves(entities: Sequence[str], seed: int) -> np.ndarray:
    """bool[N], whether a text is of the first half; an entity is in one half alone."""
    names = np.array(sorted(set(entities)))
    first = np.random.default_rng(seed).permutation(names)[: (len(names) + 1) // 2]
    return np.isin(np.array(entities), first)


def _kind(value: float, sides: tuple[float, float]) -> str:
    return polarity.kind(value, sides[1], sides[0])


def _quality(of: dict[str, Any]) -> str:
    said = (
        f"men below {fmt.signed(of['low'], 3)}, women above {of['high']:.3f}, found on "
        f"{of['fitted_on']:,} sentences of people; on {of['n']:,} of other people it "
        f"finds {_found(of, _KINDS)}, and agrees with the words on "
        f"{of['agreement']:.1%} (always the commonest: {of['commonest']:.1%})"
    )
    if of["left_out"]:
        said += f"; {of['left_out']:,} sentences without a vector are left out"
    if of["unseen"]:
        said += f"; by themselves it does not see {', '.join(of['unseen'])}"
    return f"{said}; {of['vectors']:,} vectors cover {of['coverage']:.1%} of all words"


def _withheld(of: dict[str, Any]) -> str:
    poor = [kind for kind in _KINDS if of["recall"][kind] < RECALL_FLOOR]
    if not poor:
        return ""
    return f"it finds {_found(of, poor)}, and {RECALL_FLOOR:.0%} of each are asked for"


def _found(of: dict[str, Any], kinds) -> str:
    return ", ".join(
        f"{of['recall'][kind]:.1%} of {of['counts'][kind]:,} {_KINDS[kind]}"
        for kind in kinds
    )
