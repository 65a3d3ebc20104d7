"""A tokenizer of word pieces and the small masked model that several tests read."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers as hugging_face
from tokenizers import models as hf_models
from tokenizers import pre_tokenizers, processors

from trustml.data import tokenizers

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "models" / "golden"
# Programs of tests run once or twice: compiling them well costs more than it saves.
_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=_FAST)
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = "he she it cook ##s ##ing ##er nurse play is a the not . , in garden".split()
WORDS = [*MARKS, *PIECES]
MASK = 4


def word_pieces(directory):
    """A tokenizer with marks, as BERT has."""
    ids = {word: i for i, word in enumerate(WORDS)}
    engine = hugging_face.Tokenizer(hf_models.WordPiece(ids, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    engine.save(str(directory / "tokenizer.json"))
    return tokenizers.pretrained(directory)


def ids_of(text):
    """Of pieces between blanks."""
    return [WORDS.index(word) for word in text.split()]


def example(tokens, length=14):
    """One text as a model reads it."""
    padded = np.zeros(length, np.int32)
    padded[: len(tokens)] = tokens
    return {"tokens": jnp.asarray(padded), "length": jnp.int32(len(tokens))}
