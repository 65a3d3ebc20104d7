"""The language model's texts: where they end, prompts too long, wrong checkpoints."""

import json
import re

import numpy as np
import pytest
import tokenizers
from safetensors import numpy as safetensors

from trustml import config as config_lib
from trustml.data import prose, subwords
from trustml.experiments import text_model
from trustml.models import generate


def config_of(**changes):
    cfg = config_lib.default()
    cfg.experiment = "generation"
    cfg.privacy.enabled = False
    cfg.generation.window, cfg.generation.max_new_tokens = 24, 8
    for name, value in changes.items():
        cfg.update_from_flattened_dict({name.replace("__", "."): value})
    return config_lib.from_config_dict(cfg)


def test_sentences_end_where_people_end_them():
    for text, first in (
        ("and sang. He left.", "and sang."),
        ("  of St. Louis, Mr. J. Doe.\nNext", "of St. Louis, Mr. J. Doe."),
        ('said "no." Then', 'said "no."'),
        ("rose 3.5% and fell", "rose 3.5% and fell"),
        ("\nWho? Me", "Who?"),
        ("", ""),
        ("by Mrs. Smith, Gen. Lee. He", "by Mrs. Smith, Gen. Lee."),
        ("for NASA. He was", "for NASA."),
        ("in the U.S. Army. He", "in the U.S. Army."),
        ("at 5 p.m. and left. Then", "at 5 p.m. and left."),
    ):
        assert text_model.first_sentence(text) == first


def test_a_prompt_that_is_too_long_is_named_and_not_cut(tmp_path):
    codec = subwords.train(["the cat sat on a mat and the dog sat too"] * 20, 300)
    decoder = generate.Decoder(codec.vocab_size, 24, None, None)
    model = text_model.TextModel("m", None, decoder, codec, 0, 1.0, 1.0, 0)
    config = config_of()
    long = "the dog sat on a mat and " * 4
    (pieces,) = map(len, codec.encode([long]))
    assert pieces + 1 > text_model.room(config, model) == 24 - 8
    prompts = ["the cat", long, "the dog"]
    assert text_model.too_long(config, model, prompts) == {1: pieces + 1}
    said = (
        f"leaves 16 positions of the model to a prompt, and {long!r} has {pieces + 1}"
    )
    with pytest.raises(ValueError, match=re.escape(said)):
        text_model.continuations(config, model, prompts, [0, 1, 2], tmp_path)
    # What just fits is kept, and without a bound everything does.
    (short,) = map(len, codec.encode(["the cat sat"]))
    just = model._replace(decoder=decoder._replace(max_length=8 + short + 1))
    assert text_model.too_long(config, just, ["the cat sat"]) == {}
    less = model._replace(decoder=decoder._replace(max_length=8 + short))
    assert text_model.too_long(config, less, ["the cat sat"]) == {0: short + 1}
    free = model._replace(decoder=decoder._replace(max_length=0))
    assert text_model.too_long(config, free, prompts) == {}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A GPT-2 of 260 words and 30 positions, with a tokenizer of more pieces."""
    folder = tmp_path_factory.mktemp("gpt2")
    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[subwords.END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(["the cat sat on the mat and the dog"] * 3, trainer)
    engine.save(str(folder / "tokenizer.json"))
    width, shapes = 4, {"ln_f.weight": (4,), "ln_f.bias": (4,)}
    for name, wide in (("attn.c_attn", 12), ("mlp.c_fc", 16), ("attn.c_proj", 4)):
        shapes[f"h.0.{name}.weight"], shapes[f"h.0.{name}.bias"] = (4, wide), (wide,)
    shapes |= {"h.0.mlp.c_proj.weight": (16, 4), "h.0.mlp.c_proj.bias": (4,)}
    shapes |= {
        f"h.0.ln_{n}.{leaf}": (4,) for n in (1, 2) for leaf in ("weight", "bias")
    }
    shapes |= {"wte.weight": (260, width), "wpe.weight": (30, width)}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    safetensors.save_file(zeros, str(folder / "model.safetensors"))
    sizes = {"vocab_size": 260, "n_embd": width, "n_layer": 1, "n_head": 2}
    sizes |= {"n_positions": 30, "model_type": "gpt2"}
    (folder / "config.json").write_text(json.dumps(sizes))
    return folder


@pytest.mark.parametrize(
    ("pieces", "window", "said"),
    [
        (300, 24, "pieces in tokenizer.json and 260 words in the model; give the"),
        (
            260,
            200,
            "generation.window=200 exceeds the 30 positions of the model; lower",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    checkpoint, tmp_path, monkeypatch, pieces, window, said
):
    text = prose.Prose(["a cat"], ["a dog"])
    monkeypatch.setattr(prose, "read", lambda *_: text)
    if pieces == 260:
        codec = subwords.train([""], 257)
        monkeypatch.setattr(subwords, "pretrained", lambda _: codec)
    config = config_of(model__checkpoint=str(checkpoint), generation__window=window)
    with pytest.raises(ValueError, match=re.escape(said)):
        text_model.make(config, tmp_path)
