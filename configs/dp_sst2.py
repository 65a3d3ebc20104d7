"""Private sentiment classification: SST-2 (67,349 phrases), transformer from scratch.

Source: data Socher et al. 2013; training Abadi et al. 2016 (arXiv 1607.00133) with the
large-batch advice of Li et al. 2021 (arXiv 2110.05679).
Needs $TRUSTML_DATA/sst. Result and time: not measured at full length.

    bash launch/run.sh --config=configs/dp_sst2.py
    bash launch/run.sh --config=configs/dp_sst2.py:smoke
"""

from trustml import config


def get_config(arg=""):
    """The config; `arg='smoke'` runs a few steps in under a minute."""
    cfg = config.default()
    cfg.data.name = "sst2"
    cfg.data.max_length = 32
    cfg.data.vocabulary = "hashed"  # public: nothing is learnt from the text
    cfg.model.name = "transformer"
    cfg.model.width = 128
    cfg.model.depth = 2
    cfg.model.heads = 4
    cfg.optimizer.name = "adam"
    cfg.optimizer.learning_rate = 2e-3
    cfg.optimizer.schedule = "linear"
    cfg.privacy.epsilon = 8.0
    cfg.privacy.delta = 1e-6  # below 1 / 67,349
    cfg.privacy.l2_clip_norm = 1.0
    cfg.train.steps = 600
    cfg.train.batch_size = 2048
    cfg.train.physical_batch_size = 256
    cfg.train.eval_every = 100
    if arg == "smoke":
        cfg.data.limit = 2000
        cfg.model.width = 32
        cfg.model.depth = 1
        cfg.train.steps = 5
        cfg.train.batch_size = 64
        cfg.train.physical_batch_size = 32
    return cfg


def sweep():
    """Budgets times seeds."""
    for epsilon in (1.0, 3.0, 8.0):
        for seed in range(3):
            yield {"privacy.epsilon": epsilon, "seed": seed}
