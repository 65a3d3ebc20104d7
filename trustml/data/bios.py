"""Synthetic biographies with a leak of gender of known strength.

A text has 12 tokens: 3 words of a profession, 7 fillers and 2 cues of gender, in random
order. Six professions form three pairs. The words name one of a pair; with probability
`leak` the label is instead the one of the pair that is set by gender, else the named
one. So the best classifier gives the gendered one `leak` more probability, whatever the
words say, and exchanging the cue of gender moves that much probability: the planted
truth. Cues are explicit (he, she), or implicit: six words a side that no list of
gendered words holds. Nothing is downloaded, and nobody is described.

Dimension key: `N` texts, `T` = 12 tokens.

Example::

    rows = bios.make(0, 2000, leak=0.3, cue='implicit')
    rows['tokens'].shape, rows['label'].max(), rows['gender'].mean()
    bios.words(rows['tokens'][0])
"""

import numpy as np
from numpy import typing as npt

from trustml import _validate

LENGTH = 12
PROFESSIONS = ("nurse", "surgeon", "teacher", "professor", "model", "comedian")
CUES = ("explicit", "implicit")
_WORDS = {
    "nurse": ("ward", "patients", "care", "shift"),
    "surgeon": ("scalpel", "theatre", "incision", "transplant"),
    "teacher": ("pupils", "classroom", "lessons", "homework"),
    "professor": ("lectures", "tenure", "papers", "seminar"),
    "model": ("runway", "photos", "agency", "fashion"),
    "comedian": ("jokes", "stage", "laughter", "sketch"),
}
_FILLERS = tuple(
    "lives works city years family music travels speaks studied born enjoys holds "
    "degree many new award team local often known".split()
)
EXPLICIT = ("he", "she")
IMPLICIT = (
    ("fraternity", "wrestling", "rugby", "scouts", "barbershop", "monastery"),
    ("sorority", "ballet", "netball", "guides", "salon", "convent"),
)
VOCABULARY = (
    "",  # padding
    *(word for name in PROFESSIONS for word in _WORDS[name]),
    *_FILLERS,
    *EXPLICIT,
    *IMPLICIT[0],
    *IMPLICIT[1],
)
_AT = {word: n for n, word in enumerate(VOCABULARY)}
PAIRS = np.array([[_AT["he"], _AT["she"]]])  # for `fairness.counterfactual.swap`


def make(
    seed: int, n: int, *, leak: float, cue: str = "explicit"
) -> dict[str, np.ndarray]:
    """Draws biographies.

    Args:
      seed: of the draws.
      n: how many.
      leak: in [0, 1], probability that gender sets the label within the pair.
      cue: 'explicit' or 'implicit'.

    Returns:
      tokens int32[N, 12], length int32[N], label int32[N] (a profession), gender
      int32[N] (0 or 1), named int32[N] (the profession that the words name).

    Raises:
      ValueError: a leak outside [0, 1], or an unknown cue.
    """
    _validate.integer_at_least("n", n, 1)
    leak = _validate.finite("leak", leak)
    if not 0 <= leak <= 1:
        _validate.fail("leak", leak, "must lie in [0, 1]", "it is a probability")
    cue = _validate.one_of("cue", cue, CUES)
    rng = np.random.default_rng(seed)
    named = rng.integers(0, len(PROFESSIONS), n)
    gender = rng.integers(0, 2, n)
    # Gender 1 sets the first of a pair, gender 0 the second.
    by_gender = named // 2 * 2 + 1 - gender
    label = np.where(rng.random(n) < leak, by_gender, named)
    table = np.array([[_AT[word] for word in _WORDS[name]] for name in PROFESSIONS])
    profession = table[named[:, None], rng.integers(0, table.shape[1], (n, 3))]
    filler = rng.choice([_AT[word] for word in _FILLERS], (n, 7))
    if cue == "explicit":
        cues = np.array([_AT[word] for word in EXPLICIT])[gender][:, None]
        cues = np.repeat(cues, 2, axis=1)
    else:
        sides = np.array([[_AT[word] for word in side] for side in IMPLICIT])
        cues = sides[gender[:, None], rng.integers(0, sides.shape[1], (n, 2))]
    tokens = rng.permuted(np.concatenate([profession, filler, cues], axis=1), axis=1)
    columns = {
        "tokens": tokens,
        "length": np.full(n, LENGTH),
        "label": label,
        "gender": gender,
        "named": named,
    }
    return {name: column.astype(np.int32) for name, column in columns.items()}


def words(tokens: npt.ArrayLike) -> list[str]:
    """The words of a text."""
    return [VOCABULARY[token] for token in np.asarray(tokens).tolist()]
