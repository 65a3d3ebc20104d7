"""Who is wrongly called a future offender? COMPAS, its own score beside a small model.

Source: data of Larson et al. 2016 (ProPublica), 7,214 people; features of Dressel and
Farid 2018 (https://doi.org/10.1126/sciadv.aao5580), neither race nor sex among them.
Needs $TRUSTML_DATA/compas.

Result of one run, 2026-11-22, CPU (23 s beside other work). The score, 5 or more, on
everybody: false positive rates 44.8% of African-Americans and 23.5% of Caucasians
(ProPublica's figures), 14.8% of Others; gap 30.1 points [21.8, 34.6], by chance up to
8.4. The model (2,162 test people, AUC 0.755 [0.735, 0.776]) does much the same without
having seen race: 31.6%, 17.5% and 16.2%; gap 15.4 points [6.2, 23.4], by chance up to
14.5. Its largest gap is by age: 44.5% of those under 25, 5.8% of those over 45.

    bash launch/run.sh --config=configs/fairness_compas.py
    bash launch/run.sh --config=configs/fairness_compas.py:smoke
"""

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
