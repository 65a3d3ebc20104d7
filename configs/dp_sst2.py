"""Private sentiment classification: SST-2 (67,349 phrases), bag of words and pairs.

Source: data Socher et al. 2013; training Abadi et al. 2016 (arXiv 1607.00133) with the
large-batch advice of Li et al. 2021 (arXiv 2110.05679). Needs $TRUSTML_DATA/sst.

Result at epsilon = 8, delta = 1e-6, `--config.seed=0` to 4, 2026-11-21: test accuracy
(1,821 sentences), mean of 5 seeds with 95% t-interval, 79.5% [79.1, 80.0]; the
commonest class has 50.1%. A run took 2 minutes on one busy core.

Steps, rate, batch size and pairs were chosen by accuracy on the validation split (seed
0, thirteen settings), which no epsilon covers. There the bag had 80.5%, and a
transformer (width 128, 2 blocks, clip norm 1, Adam at 2e-3) 71.3% after 100 steps of
2048 and 7 minutes on one core; its 600 steps were not measured.

The attack's AUC of 0.62 says little of leaks: members are phrases of 9 words in the
mean, and non-members, from the validation split, whole sentences of 20.

    bash launch/run.sh --config=configs/dp_sst2.py
    bash launch/run.sh --config=configs/dp_sst2.py:smoke
"""

from trustml import config


def get_config(arg=""):
    """The config; `arg='smoke'` runs a few steps in under a minute."""
    config.check_argument(arg)
    cfg = config.default()
    cfg.data.name = "sst2"
    cfg.data.max_length = 32
    cfg.data.vocabulary = "hashed"  # public: nothing is learnt from the text
    cfg.data.vocabulary_size = 16384
    cfg.model.name = "bag"
    cfg.model.width = 64
    cfg.model.hidden = ()
    cfg.model.bigrams = 65536  # hashed word pairs
    cfg.model.pooling = "sqrtn"
    cfg.optimizer.name = "adam"
    cfg.optimizer.learning_rate = 5e-3
    cfg.optimizer.schedule = "constant"
    cfg.privacy.epsilon = 8.0
    cfg.privacy.delta = 1e-6  # below 1 / 67,349
    cfg.privacy.l2_clip_norm = 0.1
    cfg.train.steps = 400
    cfg.train.batch_size = 4096
    cfg.train.physical_batch_size = 256
    cfg.train.eval_every = 100
    if arg == "smoke":
        cfg.data.limit = 2000
        cfg.train.steps = 5
        cfg.train.batch_size = 64
        cfg.train.physical_batch_size = 32
    return cfg


def sweep():
    """Budgets times seeds."""
    for epsilon in (1.0, 3.0, 8.0):
        for seed in range(3):
            yield {"privacy.epsilon": epsilon, "seed": seed}
