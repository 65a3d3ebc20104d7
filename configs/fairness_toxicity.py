"""draft."""

from trustml import config


def get_config(arg=""):
    """The config; `arg='smoke'` trains for a few steps on a part of the data."""
    config.check_argument(arg)
    cfg = config.default()
    cfg.experiment = "fairness"
    cfg.data.name = "toxicity"
    cfg.data.max_length = 128
    cfg.data.vocabulary = "hashed"
    cfg.data.vocabulary_size = 32768
    cfg.model.name = "bag"
    cfg.model.width = 64
    cfg.model.hidden = ()
    cfg.model.bigrams = 65536
    cfg.model.pooling = "sqrtn"
    cfg.optimizer.name = "adam"
    cfg.optimizer.learning_rate = 2e-3
    cfg.privacy.enabled = False
    cfg.train.steps = 400
    cfg.train.batch_size = 128
    cfg.train.eval_every = 100
    cfg.fairness.favourable = "not toxic"
    cfg.fairness.attributes = ("identity", "length")
    cfg.fairness.templates = "toxicity"
    cfg.fairness.examples = 3
    if arg == "smoke":
        cfg.data.limit = 1000
        cfg.train.steps = 10
        cfg.train.batch_size = 64
        cfg.fairness.replicates = 200
    return cfg


def sweep():
    """Seeds: of the initialization and the order."""
    for seed in range(5):
        yield {"seed": seed}
