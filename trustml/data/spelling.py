"""How the words of a vocabulary are spelled: hashed character n-grams of every id.

A model with a vector for each word can learn a rare word by heart; one that makes the
vector of a word of those of its n-grams has nothing that belongs to that word alone.
`<` and `>` mark the ends of a word: three n-grams of `nine` are `<ni`, `nin`, `ine`.

The table is made of words that are known to occur. Made of private text it tells that
these words occur, as a vocabulary would: no epsilon covers it. An id that no word was
seen of has no n-grams. Of words that share an id the first in order of spelling counts.

Dimension key: `V` ids, `C` n-grams of a word at most.

Example::

    table = spelling.table(tokenizer, words, buckets=2048)          # int32[V, C]
    task = gru.task(8192, 7, 72, spelling=table)

References: Bojanowski et al. 2017, https://arxiv.org/abs/1607.04606 (vectors of words
as sums over n-grams); Weinberger et al. 2009, https://arxiv.org/abs/0902.2206.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from trustml import _validate
from trustml.data import tokenizers


def table(
    tokenizer: tokenizers.Tokenizer,
    words: Iterable[str],
    *,
    buckets: int,
    order: int = 3,
    most: int = 16,
) -> np.ndarray:
    """Buckets of the n-grams of every id's word.

    Args:
      tokenizer: of whole words, such as `tokenizers.hashed`.
      words: that occur, in any order.
      buckets: n-grams are hashed to 1 .. buckets; 0 is none.
      order: n; a word with its marks that is shorter is one n-gram.
      most: C, n-grams kept of a word, its first ones.

    Returns:
      int32[V, C], 0 where there are no more.
    """
    buckets = _validate.integer_at_least("model.characters", buckets, 1, "try 2048")
    order = _validate.integer_at_least("order", order, 1, "3 is usual")
    most = _validate.integer_at_least("most", most, 1, "16 is usual")
    distinct = sorted({tokenizers.normalize(word) for word in words})
    out = np.zeros((tokenizer.vocab_size, most), np.int32)
    taken = {tokenizers.PAD}
    ids = tokenizer.encode_many([[word] for word in distinct], 1).tokens[:, 0]
    for word, number in zip(distinct, ids.tolist(), strict=True):
        if number in taken:
            continue
        taken.add(number)
        found = [_bucket(gram, buckets) for gram in ngrams(word, order)][:most]
        out[number, : len(found)] = found
    return out


def ngrams(word: str, order: int) -> list[str]:
    """Stretches of `order` characters of `<word>`: the whole where it is shorter."""
    marked = f"<{word}>"
    count = max(1, len(marked) - order + 1)
    return [marked[start : start + order] for start in range(count)]


def _bucket(gram: str, buckets: int) -> int:
    raw = gram.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(raw, digest_size=8, person=b"spelling").digest()
    return 1 + int.from_bytes(digest, "little") % buckets
