"""From the config to the pieces of a run, where the config's sizes meet the data's."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from trustml import config as config_lib
from trustml import rng, specs
from trustml.data import augment, dataset, datasets
from trustml.experiments import build, train, trust_report
from trustml.models import bert


def make_config(path="", **changes) -> specs.RunConfig:
    cfg = config_lib.default()
    cfg.data.path = str(path)
    cfg.data.vocabulary_size = 64
    cfg.model.width = 4
    cfg.model.hidden = ()
    cfg.optimizer.name = "sgd"
    cfg.privacy.epsilon = 8.0
    cfg.privacy.noise_seed = 0
    cfg.privacy.accountant = "rdp"
    cfg.train.steps = 2
    cfg.train.batch_size = 1024
    cfg.train.physical_batch_size = 256
    for name, value in changes.items():
        cfg.update_from_flattened_dict({name.replace("__", "."): value})
    return config_lib.from_config_dict(cfg)


# physical_batch_size, batch_size, devices -> slots of one device.
SLOTS = [
    (256, 1024, 1, 256),
    (256, 64, 1, 64),  # at most the logical batch
    (256, 100, 8, 13),  # one microbatch of 104 slots, not two of 96
    (100, 1024, 8, 12),  # what is asked for is never exceeded
    (3, 1024, 4, 1),
    (256, 1, 4, 1),
    (0, 1024, 1, 256),  # about a quarter of the batch
    (0, 5, 1, 5),
]


@pytest.mark.parametrize(("physical", "batch", "devices", "slots"), SLOTS)
def test_slots_of_a_device(physical, batch, devices, slots):
    sizes = {"train__physical_batch_size": physical, "train__batch_size": batch}
    sampler = build.sampler(make_config(**sizes), 5000, devices, rng.root(0))
    assert sampler.physical_batch_size == slots
    (physical, *_) = sampler.physical(0)
    assert physical.indices.shape[::2] == (devices, slots)


@pytest.mark.parametrize(
    ("sampler", "relation", "accountant"),
    [
        ("poisson", "add_or_remove_one", "rdp"),
        ("fixed_size", "replace_one", "rdp"),
        ("shuffled", "replace_special", "rdp"),
        ("truncated_poisson", "replace_special", "pld"),
        ("balls_in_bins", "add_or_remove_one", "monte_carlo"),
    ],
)
def test_every_sampler_of_a_config_gives_a_plan(sampler, relation, accountant):
    run = make_config(
        privacy__sampler=sampler,
        privacy__relation=relation,
        privacy__accountant=accountant,
        privacy__delta=1e-3,
        privacy__epsilon=None,
        privacy__noise_multiplier=1.5,
    )
    clipper = build.clipper(run, lambda params, example, key: params)
    sampled = build.sampler(run, 4096, 1, rng.root(0))
    assert sampled.name == sampler
    assert 0 < build.plan(run, clipper, sampled).epsilon() < 10


@pytest.fixture
def small(tmp_path):
    """A file of one's own, with fewer rows than a config's batch."""
    rows = [f"song {n}\t{('music', 'weather')[n % 2]}" for n in range(120)]
    file = tmp_path / "small.tsv"
    file.write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    return file


def test_a_small_file_needs_one_field_lowered(small, tmp_path):
    with pytest.raises(ValueError) as error:
        train.run(make_config(small), tmp_path / "a")
    text = str(error.value)
    assert text.startswith("train.batch_size=1024 must be at most the ")
    assert text.endswith(
        " training examples there are; lower train.batch_size "
        "(train.physical_batch_size=256 follows by itself)."
    )
    page = train.run(make_config(small, train__batch_size=32), tmp_path / "a")
    assert page.exists()


def test_one_sentence_for_all_batches_of_a_report(small, tmp_path):
    report = {"experiment": "trust_report", "privacy__epsilon": None}
    config = make_config(small, **report, baseline__batch_size=500)
    words = "train.batch_size=1024 and baseline.batch_size=500 must be at most the "
    with pytest.raises(ValueError, match=words) as error:
        trust_report.run(config, tmp_path / "a")
    assert "lower train.batch_size and baseline.batch_size (" in str(error.value)
    few = {"train__batch_size": 32, "baseline__batch_size": 8}
    assert trust_report.run(make_config(small, **report, **few), tmp_path / "a")


def other_weights(directory, tmp_path):
    """The checkpoint with the signs of one array turned."""
    shutil.copy(directory / "config.json", tmp_path)
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    name = min(name for name in tensors if name.endswith("LayerNorm.weight"))
    tensors[name] = -tensors[name]
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_a_pattern_that_selects_nothing_is_found_before_anything_is_computed(small):
    config = make_config(small, privacy__trainable=("wide/*",), train__batch_size=32)
    data = build.dataset(config)
    with pytest.raises(ValueError, match="privacy.trainable.*selects no parameter"):
        build.check(config, data, build.task(config, data))


def test_a_frozen_encoder_reads_each_text_once(tmp_path):
    golden = pathlib.Path(__file__).parents[1] / "models/golden/bert"
    draws = np.random.default_rng(0)

    def split(n):
        return {
            "tokens": draws.integers(1, 20, (n, 6)).astype(np.int32),
            "length": draws.integers(1, 7, n).astype(np.int32),
            "label": np.zeros(n, np.int32),
        }

    splits = {"train": split(130), "valid": split(1), "test": split(64)}
    data = datasets.load("digits")._replace(**splits)
    changes = {
        "data__vocabulary": "pretrained",
        "model__name": "bert",
        "model__checkpoint": str(golden),
        "model__pooling": "every_second",
        "privacy__trainable": ("classifier/*",),
    }
    assert build.encoded(make_config(**changes), data) is data
    cached = make_config(**changes, model__cache_features=True)
    kept = build.encoded(cached, data)
    assert kept.digest == build.encoded(cached, data).digest != data.digest
    other = dict(changes, model__checkpoint=str(other_weights(golden, tmp_path)))
    other = build.encoded(make_config(**other, model__cache_features=True), data)
    assert other.digest != kept.digest, "a run would go on with another encoder"
    encoder = bert.encoder(golden, pooling="every_second")
    for name, size in (("train", 130), ("valid", 1), ("test", 64)):
        columns = getattr(kept, name)
        assert columns.keys() == {"tokens", "length", "label", bert.KEPT}
        assert len(columns[bert.KEPT]) == size
        last = {key: columns[key][-1] for key in ("tokens", "length")}
        np.testing.assert_allclose(
            columns[bert.KEPT][-1],
            jax.jit(encoder.pooled)(encoder.params, last),
            atol=1e-5,
        )


def test_augmentation_needs_data_of_its_kind(small):
    config = make_config(small, train__augmentation="shift", train__batch_size=32)
    data = build.dataset(config)
    task = build.task(config, data)
    with pytest.raises(ValueError, match="'shift' needs data with 'image'"):
        build.loss(config, data, task)
    words = make_config(
        small, train__augmentation="word_dropout", train__augmentations=3
    )
    params = task.init(jax.random.key(0))
    example = {name: column[0] for name, column in data.train.items()}
    loss = build.loss(words, data, task)
    want = augment.average(task.loss, augment.word_dropout(0.1), 3)
    keys = jax.random.split(jax.random.key(0), 8)
    got = jax.vmap(loss, (None, None, 0))(params, example, keys)
    same = jax.vmap(want, (None, None, 0))(params, example, jax.random.clone(keys))
    np.testing.assert_array_equal(got, same)
    assert len(set(np.asarray(got))) > 3, "three views of a short text differ by key"
    plain = make_config(small)
    assert build.loss(plain, data, task) is task.loss


def test_an_adapter_says_what_is_trained_unless_the_config_does():
    def of(**changes):
        return build.trainable(make_config(**changes))

    assert of() is None
    assert of(model__name="bert", model__adapter="lora") == ("classifier/*", "*/lora_*")
    assert of(model__name="bert", model__adapter="bias") == ("classifier/*", "*/bias")
    own = {"privacy__trainable": ("classifier/*",)}
    assert of(model__name="bert", model__adapter="bias", **own) == ("classifier/*",)


def test_an_adapter_of_the_config_is_built_and_clipped():
    """The golden checkpoint has no tokenizer, so its task is made on data in memory."""
    golden = pathlib.Path(__file__).parents[1] / "models" / "golden" / "bert"
    changes = {
        "model__name": "bert",
        "model__adapter": "lora",
        "model__lora_rank": 3,
        "model__checkpoint": str(golden),
        "data__vocabulary": "pretrained",
        "data__max_length": 4,
    }
    config = make_config(**changes)
    rows = {"tokens": np.ones((8, 4), np.int32), "label": np.zeros(8, np.int32)}
    data = dataset.Dataset(
        rows, rows, rows, ("a", "b"), (), None, name="made", source="here",
        licence="none", group_names={}, digest="made", vocab_size=99,
        feature_names=(), texts={}, groups={},
    )  # fmt: skip
    task = build.task(config, data)
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert params["layer_0"]["lora_query"]["a"].shape == (32, 3)
    clipper = build.clipper(config, build.loss(config, data, task))
    named = clipper.groups(params)
    assert len(named.index) == 2 + 2 * 2 * 2
    biases = build.task(make_config(**changes | {"model__adapter": "bias"}), data)
    params = jax.eval_shape(biases.init, jax.random.key(0))
    assert "lora_query" not in params["layer_0"]


def test_a_run_without_privacy_has_no_secret():
    """Its seed fixes batches, too; under privacy only a given seed does."""

    def drawn(**changed):
        run = make_config(privacy__noise_seed=None, **changed)
        made = build.sampler(run, 5000, 1, build.root(run))
        return np.concatenate([one.indices[one.mask] for one in made.physical(0)])

    plain = {"privacy__enabled": False, "privacy__epsilon": None}
    np.testing.assert_array_equal(drawn(seed=1, **plain), drawn(seed=1, **plain))
    assert not np.array_equal(drawn(seed=1, **plain), drawn(seed=2, **plain))
    assert not build.root(make_config(privacy__noise_seed=None, **plain)).secret
    assert build.root(make_config(privacy__noise_seed=None)).secret
