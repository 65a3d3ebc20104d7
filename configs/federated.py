"""Federated averaging on SNIPS: 200 clients of very different sizes and intents.

Source: McMahan et al. 2017 (arXiv 1602.05629); labels by Hsu et al. 2019 (arXiv
1909.06335). `:private` promises every client (8, 1e-3)-differential privacy, with
weights and cohorts that have a sensitivity.

    bash launch/run.sh --config=configs/federated.py
    bash launch/run.sh --config=configs/federated.py:private
    bash launch/run.sh --config=configs/federated.py:smoke
"""

from trustml import config


def get_config(arg=""):
    """The config; `arg='smoke'` runs a few rounds in under a minute."""
    config.check_argument(arg, ("", "private", "smoke"))
    cfg = config.default()
    cfg.experiment = "federate"
    cfg.data.name = "snips"
    cfg.data.vocabulary_size = 4096
    cfg.model.name = "bag"
    cfg.model.bigrams = 0
    cfg.privacy.enabled = False
    cfg.optimizer.name = "sgd"
    cfg.optimizer.learning_rate = 0.3
    cfg.federated.partition = "label_dirichlet"
    cfg.federated.clients = 200
    cfg.federated.alpha = 0.5
    cfg.federated.size_cv = 1.0
    cfg.federated.selection = "uniform"
    cfg.federated.cohort = 20
    cfg.federated.weighting = "data"
    cfg.train.steps = 200  # rounds
    cfg.train.batch_size = 10  # of a client
    cfg.train.eval_every = 20
    cfg.train.log_every = 5
    if arg == "private":
        cfg.privacy.enabled = True
        cfg.privacy.epsilon = 8.0
        cfg.privacy.delta = 1e-3
        cfg.privacy.l2_clip_norm = 0.3
        cfg.federated.selection = "capped_power"
        cfg.federated.weighting = "uniform"
        cfg.federated.cohort = 40
    if arg == "smoke":
        cfg.data.limit = 1000
        cfg.federated.clients = 30
        cfg.federated.cohort = 5
        cfg.train.steps = 4
        cfg.train.eval_every = 2
    return cfg


def sweep():
    """Algorithms times seeds."""
    for algorithm in ("fedavg", "scaffold", "fednova", "feddyn"):
        for seed in range(3):
            uniform = algorithm in ("scaffold", "feddyn")
            yield {
                "federated.algorithm": algorithm,
                "federated.weighting": "uniform" if uniform else "data",
                "seed": seed,
            }
