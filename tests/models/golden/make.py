"""Makes the golden outputs of the language models with PyTorch.

`gpt2_test.py`, `masked_lm_test.py` and `generate_test.py` read them. PyTorch is no
dependency of the tests: run this only to make the files anew, in an environment of its
own, from the root of the repository::

    python3 -m venv /tmp/torchenv
    /tmp/torchenv/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors==0.8.0
    /tmp/torchenv/bin/python tests/models/golden/make.py

Written beside this file, for each of gpt2/, bert_mlm/, roberta_mlm/, distilbert_mlm/:
  config.json, model.safetensors: a random model of width 32 with 2 layers and 61 words;
    weights lie in half precision, and PyTorch ran on exactly these, in float32.
  golden.npz: `tokens` i32[B, T], `lengths` i32[B], `log_probs` f32[B, T, 61]; for gpt2
    `greedy` i32[B, 16], what `generate` adds without sampling; for bert_mlm `segments`
    i32[B, T] and `next` f32[B, 2], log-probabilities of "follows" and "does not".

Biases and scales of LayerNorm are random too, and epsilons are large and unlike: a
fresh model holds zeros and ones there, which would hide a swapped or forgotten one.
"""

import pathlib

import numpy as np
import safetensors.torch
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
VOCABULARY = 61
LENGTHS = (1, 3, 6, 9, 11, 12)


def randomise(model):
    """Random weights far from those of a fresh model, exact in half precision."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        norm = "norm" in name.lower() or ".ln_" in name
        # Without these two GPT-2 would say one word for ever.
        stds = {"transformer.wpe.weight": 3.0, "transformer.ln_f.bias": 0.05}
        torch.nn.init.normal_(parameter, std=stds.get(name, 0.3))
        if norm and name.endswith("weight"):
            parameter.data += 1.0
        parameter.data = parameter.data.half().float()
    return model.eval()


def batch(pad):
    """Random tokens, padded at the right, and how many are real."""
    lengths = np.array(LENGTHS, np.int32)
    shape = (len(LENGTHS), max(LENGTHS))
    tokens = np.random.default_rng(0).integers(5, VOCABULARY, shape).astype(np.int32)
    tokens[np.arange(shape[1])[None, :] >= lengths[:, None]] = pad
    return tokens, lengths


def write(name, model, pad, **options):
    """Writes a model and its log-probabilities; `options` go to its call."""
    tokens, lengths = batch(pad)
    mask = np.arange(tokens.shape[1])[None, :] < lengths[:, None]
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(mask, dtype=torch.long),
            **options,
        )
    logits = out.prediction_logits if "prediction_logits" in out else out.logits
    found = {
        "tokens": tokens,
        "lengths": lengths,
        "log_probs": torch.log_softmax(logits, -1).numpy(),
    }
    if "seq_relationship_logits" in out:
        found["next"] = torch.log_softmax(out.seq_relationship_logits, -1).numpy()
        found["segments"] = options["token_type_ids"].numpy().astype(np.int32)
    if name == "gpt2":
        found["greedy"] = np.stack(
            [greedy(model, row[:n]) for row, n in zip(tokens, lengths, strict=True)]
        )
    directory = HERE / name
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    path = directory / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    halves = {key: value.half().contiguous() for key, value in tensors.items()}
    safetensors.torch.save_file(halves, path, {"format": "pt"})
    path.chmod(0o644)
    np.savez_compressed(directory / "golden.npz", **found)


def greedy(model, prompt):
    """The 16 tokens that PyTorch's own greedy decoder adds."""
    ids = torch.tensor(prompt, dtype=torch.long)[None]
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        min_new_tokens=16,
        max_new_tokens=16,
        pad_token_id=0,
        eos_token_id=None,
    )
    return out[0, len(prompt) :].numpy().astype(np.int32)


if __name__ == "__main__":
    eager = {"attn_implementation": "eager"}
    write(
        "gpt2",
        randomise(
            transformers.GPT2LMHeadModel._from_config(
                transformers.GPT2Config(
                    vocab_size=VOCABULARY,
                    n_positions=32,
                    n_embd=32,
                    n_layer=2,
                    n_head=4,
                    n_inner=48,
                    layer_norm_epsilon=1e-2,
                    bos_token_id=3,
                    eos_token_id=3,
                ),
                **eager,
            )
        ),
        pad=0,
    )
    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 20,
    }
    segments = torch.zeros((len(LENGTHS), max(LENGTHS)), dtype=torch.long)
    segments[:, 2:] = 1
    write(
        "bert_mlm",
        randomise(
            transformers.BertForPreTraining._from_config(
                transformers.BertConfig(**shared, layer_norm_eps=1e-2), **eager
            )
        ),
        pad=0,
        token_type_ids=segments,
    )
    write(
        "roberta_mlm",
        randomise(
            transformers.RobertaForMaskedLM._from_config(
                transformers.RobertaConfig(
                    **shared, type_vocab_size=1, layer_norm_eps=1e-3, pad_token_id=1
                ),
                **eager,
            )
        ),
        pad=1,
    )
    write(
        "distilbert_mlm",
        randomise(
            transformers.DistilBertForMaskedLM._from_config(
                transformers.DistilBertConfig(
                    vocab_size=VOCABULARY,
                    max_position_embeddings=20,
                    dim=32,
                    n_layers=2,
                    n_heads=4,
                    hidden_dim=48,
                ),
                **eager,
            )
        ),
        pad=0,
    )
