"""The public sets themselves: digests of the files, rows, labels, known examples."""

import hashlib

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from trustml.data import builders, datasets, sources

# File -> SHA-256, of the published files that the figures below belong to.
# fmt: off
SHA256 = {
    "snips/train.jsonl.gz":
        "b1b7684b02270c5d8402cca631668eb9f7f2ad9335b51c5a3a1722ee247e2cea",
    "snips/valid.jsonl.gz":
        "9e445cae640df94a10917b2ba0172296eeceb2592cc40ed14fe48385eb790918",
    "snips/test.jsonl.gz":
        "3b5d27669d8f3987b6cbe4da049fc76fd715fb9d1c95b18dba3b85e148415f60",
    "atis/train.jsonl.gz":
        "ea200440bebd328877537505df4afd58278ab987ab0a57fadf1aaf2d719a1f92",
    "atis/valid.jsonl.gz":
        "0bf411a58bb1ccdd4758955f3471b87a958e92c40424c7bb94fcf1c77c03a04a",
    "atis/test.jsonl.gz":
        "197679be0457bf254fcba2b3879e82204e88cebad951be86cb0126ce61288d50",
    "nlu_eval/train.jsonl.gz":
        "64b6ae79da9def21eacdfaa3be3a97141cf83b0cda829c9bbdcb8631848ea0a7",
    "nlu_eval/test.jsonl.gz":
        "76e5c8dd93f4d20d729c9b61cc8a641ed37963febe45500b71f12694d7e05a20",
    "ag_news/train.jsonl.gz":
        "f4529698fa4a7ece9c046130febcaf7c2e29d9ffbdd1a1496dc749ba5b5be60c",
    "ag_news/test.jsonl.gz":
        "4e4f289b8115b0811250bf68afeed5f8fdacf2f710be488a770fe344c8f57111",
    "sst2/sst2_train.tsv.gz":
        "1ef6517ac40ad007cf91c587305172b3c9eee1f037f06dad2c50842a725df159",
    "sst2/sst2_dev.tsv.gz":
        "67742805d94f1e30e9dfde04abfa03cb8bbd8dc303a30237024d5bd34afb055d",
    "sst2/sst2_test.tsv.gz":
        "d0fdb289e7a7644814b004d5fb6d642ec3b203be1556119d638716df9969ed4c",
    "clinc150/train.tsv.gz":
        "8e8715ffcdf89af56711986b2ca5fe2daf5256f0ba0f8dbd2002246ee03ca13e",
    "clinc150/valid.tsv.gz":
        "eb34fc44b5bf6366fcea2564e8e7c33e69e15185d15774b07a03bcc54dfadcb0",
    "clinc150/test.tsv.gz":
        "2b0d3837b79743ffedc02d40f713cdeba8fb7ecf611599391e2c2b603a2b2fcd",
    "digits/digits.csv.gz":
        "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    "mnist/mnist.npz":
        "d4071d0da15a2dcb157fc19fc8a1b9b3e632826acc0198debd848f4e03a34bcb",
    "adult/train.csv.gz":
        "a833df349bf96e939cb2de65a084d3a21cd64c4781a95551430453ac6892bb3b",
    "adult/test.csv.gz":
        "8b1e351af7a41f3745edeff5bf1aaf280319e11af13ee030b230d8ad83115396",
    "location30/location30.npz":
        "8efc52aad383b32c518457d08b8a4dc14d81bbaa81b12ad9618a70ac66936541",
    "compas/compas_two_years.csv.gz":
        "e6afe34c6f68e873e89b0a6c6981446564d0ebc8eba5f81f282706d92f1757b3",
    "hatexplain/train.jsonl.gz":
        "9d715fdf8a99f8278f132119639320a18aa60c43fe8abae0a023d5ea7534aaa7",
    "hatexplain/valid.jsonl.gz":
        "d895582460400cc3556fc03c9bf1ba4af7cad5159c68edae0ed792d030314ba3",
    "hatexplain/test.jsonl.gz":
        "4f9c7e9a8f3e9a6ad0c63ddf7be7ec39c13cb097f297e4039e719cea8050e3a6",
    "toxicity/wiki_comments.jsonl.gz":
        "de936423fcd2ac5652b25adccacf914f9c55a98b80eb6044e636b8ce0ca4e3db",
    "toxicity/wiki_nonfuzzed.jsonl.gz":
        "b500933e206eda8547e91ada6afed901ed4f85075c44a5b150c6919912d82303",
    "toxicity/adjectives_people.txt":
        "5d999b7488ada99a0bb41715cc7c7c2627927319775f041d4a2d447496411eb8",
    "toxicity/templates_en.tsv.gz":
        "5ae3fbe3b4099d09e6495437dc670be09343b665473fed0fea1ee92fc781036a",
    "newsgroups20/test.jsonl.gz":
        "3d3cd6238587207dbb95cc5f19eecb267ebd81c4c43e2a1ec75641366d00ec69",
    "newsgroups20/train.jsonl.gz":
        "881f80ad822c2b3ebd3e6b53d967859393a9bffce1403385908704ebc7fb073b",
    "wnut17/dev.jsonl.gz":
        "e9ce398c93da4a3b5cfc01ddcf3def876fe89141b829a0ea57d81cd9e629d1e7",
    "wnut17/test.jsonl.gz":
        "e6e2021db86045154f1a63dc85a45aa8e702d592513cfce30cbbab03c56ed91d",
    "wnut17/train.jsonl.gz":
        "fc82d490a278c43f52edc5d93c92b0591c8f2f14eb9e5653b1d4b9ad2de6614e",
    "ud_ewt/dev.jsonl.gz":
        "d3154d44638f7d060ab441cbe0b511a7be57e02a3c82573504836a71074fc1d3",
    "ud_ewt/test.jsonl.gz":
        "5d54e9534479d723fd5ae74e5f228092fe8ed065667be264ee958fbc912eeb89",
    "ud_ewt/train.jsonl.gz":
        "a7000891423db5c4f02e2a5323963124e787d4021b1c7902c460fb1e0428ef61",
    "squad/v11_contexts.jsonl.gz":
        "b912cf3a4ce4c7e4fef23e8c623ec1eb4d6cac0c792318ca72e1ac1c57a41862",
    "squad/v11_test.jsonl.gz":
        "8dd57efbfc614425d98e2a3817a2b7be98150067ce42ab83ca3594733a55f87b",
    "squad/v11_train.jsonl.gz":
        "c8b4cfc6eb6b25d4d04834c444271e3cbd6a934e227411ae729fed875c4fbaee",
    "e2e_nlg/dev.tsv.gz":
        "08c0c09b2e4390393eab1dac7e43ed8e5c276948f31bd2be38af1b0e438b2837",
    "e2e_nlg/test.tsv.gz":
        "f94f37c1045b3a6692175d9e92d7b56a36c848ec6bceb0bf818fc8de7c37d060",
}
# fmt: on

# Name -> rows of train, valid, test; labels; slots.
SIZES = {
    "snips": ((13084, 700, 700), 7, 72),
    "atis": ((4478, 500, 893), 26, 127),
    "nlu_eval": ((8975, 985, 1076), 64, 105),
    "ag_news": ((15849, 1725, 7600), 4, 0),
    "sst2": ((67349, 872, 1821), 2, 0),
    "clinc150": ((15100, 3100, 5500), 151, 0),
    "digits": ((1469, 156, 172), 10, 0),
    "mnist": ((53907, 6093, 3000), 10, 0),
    "adult": ((29315, 3246, 16281), 2, 0),
    "location30": ((4034, 479, 497), 30, 0),
    "newsgroups20": ((10194, 1120, 7532), 20, 0),
    "wnut17": ((3394, 1009, 1287), 7, 13),
    "ud_ewt": ((12544, 2001, 2077), 5, 17),
    "squad": ((7788, 795, 1987), 8, 0),
    "e2e_nlg": ((4249, 423, 4693), 7, 0),
    "compas": ((4340, 712, 2162), 2, 0),
    "hatexplain": ((15383, 1922, 1924), 2, 0),
    "toxicity": ((10000, 1492, 2180), 2, 0),
}
PACKAGED = ("snips", "digits")
# Preparing them takes 5 to 15 s each.
LARGE = (
    *("sst2", "mnist", "adult", "ag_news", "newsgroups20", "ud_ewt", "squad"),
    *("hatexplain", "toxicity"),
)


def test_every_set_is_under_test():
    assert set(SIZES) == set(datasets.NAMES) == set(sources.BY_NAME)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUSTML_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def check_files(name):
    folder = builders.locate(sources.BY_NAME[name])
    for file in sources.BY_NAME[name].files:
        content = (folder / file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == SHA256[f"{name}/{file}"], file


def check_loaded(name):
    rows, labels, slots = SIZES[name]
    data = datasets.load(name, max_length=24)
    for part, count in zip(("train", "valid", "test"), rows, strict=True):
        columns = getattr(data, part)
        assert {len(column) for column in columns.values()} == {count}
        assert columns["label"].max() < labels and columns["label"].min() >= 0
        for values in data.groups[part].values():
            assert len(values) == count
        if "tokens" in columns:
            used = np.arange(24) < columns["length"][:, None]
            assert np.all((columns["tokens"] > 0) == used)
            assert columns["tokens"].max() < data.vocab_size
            assert len(data.texts[part]) == count
        if "slots" in columns:
            assert columns["slots"].max() < slots
            assert not columns["slots"][~used].any()
        if "image" in columns:
            assert columns["image"].min() == 0 and columns["image"].max() == 1
        if "features" in columns:
            assert np.abs(columns["features"]).max() < 6
    assert len(data.label_names) == labels and len(data.slot_names) == slots
    assert data.source and data.licence and data.name == name
    return data


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_files_are_those_published(name):
    check_files(name)


@pytest.mark.data
@pytest.mark.parametrize("name", [n for n in SIZES if n not in PACKAGED])
def test_files_are_those_published(name):
    check_files(name)


@pytest.mark.data
@pytest.mark.parametrize("name", ["sst2", "mnist", "ag_news"])
def test_rows_of_the_large_sets(name):
    source = sources.BY_NAME[name]
    found = sources.rows(source, builders.locate(source))
    assert tuple(len(found[p]) for p in ("train", "valid", "test")) == SIZES[name][0]
    names = {row["label"] for rows in found.values() for row in rows}
    assert names == set(source.label_names)


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    ["atis", "nlu_eval", "clinc150", "location30", "wnut17", "e2e_nlg", "compas"],
)
def test_loaded_sets(cache, name):
    check_loaded(name)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", LARGE)
def test_loaded_large_sets(cache, name):
    check_loaded(name)


def test_snips(cache):
    data = check_loaded("snips")
    counts = np.bincount(data.train["label"])
    assert dict(zip(data.label_names, counts.tolist(), strict=True)) == {
        "AddToPlaylist": 1818,
        "BookRestaurant": 1881,
        "GetWeather": 1896,
        "PlayMusic": 1914,
        "RateBook": 1876,
        "SearchCreativeWork": 1847,
        "SearchScreeningEvent": 1852,
    }
    assert data.texts["train"][0][:3] == ["listen", "to", "westbam"]
    slots = [data.slot_names[n] for n in data.train["slots"][0][:8]]
    assert slots == "O O B-artist O B-album O B-service I-service".split()
    shared = {" ".join(t) for t in data.texts["train"]}
    assert sum(" ".join(t) in shared for t in data.texts["test"]) == 26
    assert np.bincount(data.groups["test"]["length"]).tolist() == [258, 168, 127, 147]
    few = datasets.load("snips", max_length=24, limit=100)
    assert few.train["tokens"].shape == (100, 24) and len(few.test["label"]) == 100
    assert few.label_names == data.label_names and few.digest != data.digest
    words = datasets.load("snips", vocabulary="train", vocabulary_size=300, limit=100)
    assert words.vocab_size == 300 and words.train["tokens"].max() == 299


def test_digits_are_those_of_sklearn(cache):
    data = check_loaded("digits")
    oracle = sklearn_datasets.load_digits()
    wanted = {
        (i.tobytes(), int(t))
        for i, t in zip(oracle.images / 16, oracle.target, strict=True)
    }
    found = set()
    for part in (data.train, data.valid, data.test):
        images = part["image"][..., 0].astype(np.float64)
        found |= {
            (i.tobytes(), int(t)) for i, t in zip(images, part["label"], strict=True)
        }
    assert found == wanted
