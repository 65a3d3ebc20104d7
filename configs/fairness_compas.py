"""draft."""

from trustml import config


def get_config(arg=""):
    """The config; `arg='smoke'` trains for a few steps."""
    config.check_argument(arg)
    cfg = config.default()
    cfg.experiment = "fairness"
    cfg.data.name = "compas"
    cfg.model.name = "mlp"
    cfg.model.hidden = (32,)
    cfg.optimizer.name = "adam"
    cfg.optimizer.learning_rate = 3e-3
    cfg.optimizer.schedule = "cosine"
    cfg.privacy.enabled = False
    cfg.train.steps = 600
    cfg.train.batch_size = 256
    cfg.train.eval_every = 100
    cfg.fairness.attributes = ("race", "sex", "age")
    cfg.fairness.favourable = "no new charge"
    cfg.fairness.reference = ("race=Caucasian", "sex=Female")
    cfg.fairness.score_column = "decile_score"
    cfg.fairness.score_at_least = "5"  # medium or high risk, as ProPublica has it
    if arg == "smoke":
        cfg.train.steps = 20
        cfg.fairness.replicates = 200
    return cfg


def sweep():
    """Seeds: of the initialization and the order."""
    for seed in range(5):
        yield {"seed": seed}
