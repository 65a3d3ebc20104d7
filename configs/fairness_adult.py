"""draft."""

from trustml import config


def get_config(arg=""):
    """The config; `arg='smoke'` trains for a few steps."""
    config.check_argument(arg)
    cfg = config.default()
    cfg.experiment = "fairness"
    cfg.data.name = "adult"
    cfg.model.name = "mlp"
    cfg.model.hidden = (64,)
    cfg.optimizer.name = "adam"
    cfg.optimizer.learning_rate = 3e-3
    cfg.optimizer.schedule = "cosine"
    cfg.privacy.enabled = False
    cfg.train.steps = 1000
    cfg.train.batch_size = 512
    cfg.train.eval_every = 250
    cfg.fairness.attributes = ("sex", "race", "age")
    cfg.fairness.favourable = ">50K"
    cfg.fairness.reference = ("sex=Male", "race=White")
    if arg == "smoke":
        cfg.data.limit = 2000
        cfg.train.steps = 20
        cfg.train.batch_size = 64
        cfg.fairness.replicates = 200
    return cfg


def sweep():
    """Without privacy, then two budgets, three seeds each."""
    for seed in range(3):
        yield {"seed": seed}
        for epsilon in (1.0, 8.0):
            yield {
                "privacy.enabled": True,
                "privacy.epsilon": epsilon,
                "privacy.delta": 1e-5,
                "seed": seed,
            }
