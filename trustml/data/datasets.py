"""The public data sets, by name, as NumPy columns.

    data = datasets.load('snips', max_length=16)

SNIPS comes inside this package and digits with scikit-learn; the files of the others
are found under `$TRUSTML_DATA` (layout: `trustml.data.sources`). Nothing is downloaded.

| name | train / valid / test | labels | slots | kind |
| --- | --- | --- | --- | --- |
| snips | 13,084 / 700 / 700 | 7 | 72 | voice-assistant queries |
| atis | 4,478 / 500 / 893 | 26 | 127 | flight queries |
| nlu_eval | 8,975 / 985 / 1,076 | 64 | 105 | home-assistant queries |
| ag_news | 15,849 / 1,725 / 7,600 | 4 | | news items (part of train) |
| sst2 | 67,349 / 872 / 1,821 | 2 | | film-review phrases |
| clinc150 | 15,100 / 3,100 / 5,500 | 151 | | queries, out of scope among them |
| digits | 1,469 / 156 / 172 | 10 | | grey images 8 x 8 |
| mnist | 53,907 / 6,093 / 3,000 | 10 | | grey images 28 x 28 |
| adult | 29,315 / 3,246 / 16,281 | 2 | | census rows: 91 features, 3 groups |
| location30 | 4,034 / 479 / 497 | 30 | | check-ins of people: 446 features of 0 and 1 |
| newsgroups20 | 10,194 / 1,120 / 7,532 | 20 | | posts, by author |
| wnut17 | 3,394 / 1,009 / 1,287 | | 13 | posts with entities |
| ud_ewt | 12,544 / 2,001 / 2,077 | | 17 | sentences with parts of speech, by document |
| squad | 7,788 / 795 / 1,987 | | | questions to paragraphs, by article |
| e2e_nlg | 4,249 / 423 / 4,693 | | | meanings and sentences of restaurants |
| compas | 4,340 / 712 / 2,162 | 2 | | people on trial: 6 features, 3 groups, a score |
| hatexplain | 15,383 / 1,922 / 1,924 | 2 | | posts; ten communities, not in train |
| toxicity | 10,000 / 1,492 / 2,180 | 2 | | comments; names an identity or not |

Preparing a set takes some seconds once; see `trustml.data.builders` for the cache.

Example::

    data = datasets.load('adult')
    data.train['features'].shape, data.group_names['race'], data.groups['test']['race']
"""

import json

import numpy as np

from trustml import _validate
from trustml.data import dataset, sources, tokenizers

Dataset = dataset.Dataset
NAMES = tuple(sources.BY_NAME)


def load(
    name: str,
    *,
    max_length: int = 32,
    second_length: int = 32,
    vocabulary: str = "hashed",
    vocabulary_size: int = 8192,
    pretrained_dir="",
    tokenizer: tokenizers.Tokenizer | None = None,
    limit: int | None = 0,
    seed: int = 0,
    data_dir="",
) -> dataset.Dataset:
    """Loads a public data set.

    Args:
      name: one of `NAMES`.
      max_length: T, tokens of a text; the end of longer ones is dropped.
      second_length: U, tokens of a question or a target, likewise.
      vocabulary: 'hashed' (public), 'train' (words of the training text; not private)
        or 'pretrained' (of a checkpoint); see `trustml.data.tokenizers`.
      vocabulary_size: ids in all, for 'hashed' and 'train'.
      pretrained_dir: directory of the checkpoint, for 'pretrained'.
      tokenizer: takes the place of the three fields above.
      limit: examples kept of every split, chosen at random with `seed`; 0 keeps all.
      seed: of that choice.
      data_dir: holds a folder for each set; `$TRUSTML_DATA` where empty.

    Returns:
      The data; columns in the source's order.

    Raises:
      ValueError: for a field out of its bounds.
      FileNotFoundError: if a file is not there; says which, where, and its origin.
    """
    _validate.one_of("data.name", name, NAMES)
    limit = _validate.integer_at_least("data.limit", limit or 0, 0, "0 keeps all")
    seed = _validate.integer_at_least("seed", seed, 0)
    _validate.integer_at_least("data.max_length", max_length, 1, "try 32")
    _validate.integer_at_least("data.second_length", second_length, 1, "try 32")
    _validate.one_of("data.vocabulary", vocabulary, dataset.VOCABULARIES)
    from trustml.data import builders  # TFDS takes half a second to import

    source = sources.BY_NAME[name]
    folder = builders.prepare(name, data_dir)
    splits = {
        part: dataset.subset(
            _split(source, builders.columns(folder, part)), limit, seed
        )
        for part in dataset.SPLITS
    }
    texts = splits["train"].texts
    if texts is not None and tokenizer is None:
        texts = [*texts, *(splits["train"].second or ())]
        tokenizer = dataset.choose_tokenizer(
            vocabulary, vocabulary_size, pretrained_dir, texts
        )
    return dataset.assemble(
        splits,
        label_names=builders.label_names(folder),
        max_length=max_length,
        tokenizer=tokenizer if texts is not None else None,
        length_edges=source.length_edges,
        digest_of=(folder.parts[-4], str(limit), str(seed if limit else 0)),
        name=name,
        source=f"{source.origin}; {source.citation}",
        licence=source.licence,
        feature_names=source.feature_names,
        group_names=source.group_names,
        kind=source.kind,
        second_length=second_length,
    )


def _split(source: sources.Source, columns) -> dataset.Split:
    """Columns of TFDS as a `Split`."""
    texts, slots = columns.get("text"), columns.get("slots")
    image, found = columns.get("image"), columns.get("references")
    if source.words:
        texts = [text.split(" ") for text in texts]
    return dataset.Split(
        labels=columns["label"],
        texts=texts,
        slots=None if slots is None else [tags.split(" ") for tags in slots],
        image=None if image is None else image / np.float32(source.image_scale),
        features=columns.get("features"),
        groups={n: columns[n] for n in source.group_names if n in columns},
        users=columns.get("user"),
        second=columns.get("second"),
        spans=columns.get("span"),
        references=None if found is None else [tuple(json.loads(x)) for x in found],
    )
