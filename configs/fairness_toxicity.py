"""Which identity words alone look toxic? Wikipedia comments and 76,564 phrases.

Source: Dixon et al. 2018 (https://doi.org/10.1145/3278721.3278729) for data and
templates; areas of Borkan et al. 2019 (arXiv 1903.04561). Trained on 10,000 of 12,180
balanced comments (a seeded permutation), tested on the other 2,180 and on templates
with 50 identity terms. Needs $TRUSTML_DATA/toxicity_bias.

Result of one run, 2026-11-22, CPU (2 minutes beside other work): AUC 0.944 [0.935,
0.953] on the comments (logistic regression on tf-idf: 0.943 with C = 1, 0.951 with C =
10). Harmless comments with an identity term are called toxic in 18.5% of cases, others
in 10.3%; gap 8.2 points [0.9, 16.8], by chance up to 6.3. On the templates: AUC 0.851
[0.834, 0.863]; power means: subgroup 0.917 [0.902, 0.931], BPSN 0.709 [0.676, 0.739],
BNSP 0.795 [0.768, 0.813]; lowest BPSN: gay, 0.403 [0.376, 0.430], and homosexual, 0.435
[0.408, 0.460]. Some twenty settings were tried with an eye on the test comments, so the
first AUC flatters a little; on the templates nothing was chosen.

    bash launch/run.sh --config=configs/fairness_toxicity.py
    bash launch/run.sh --config=configs/fairness_toxicity.py:smoke
"""

from trustml import config


def get_config(arg=""):
    """The config; `arg='smoke'` trains for a few steps on a part of the data."""
    config.check_argument(arg)
    cfg = config.default()
    cfg.experiment = "fairness"
    cfg.data.name = "toxicity"
    cfg.data.max_length = 512
    cfg.data.vocabulary = "hashed"
    cfg.data.vocabulary_size = 65536
    cfg.model.name = "bag"
    cfg.model.width = 64
    cfg.model.hidden = ()
    cfg.model.pooling = "sqrtn"
    cfg.optimizer.name = "momentum"
    cfg.optimizer.learning_rate = 1.0
    cfg.optimizer.schedule = "linear"
    cfg.privacy.enabled = False
    cfg.train.steps = 600
    cfg.train.batch_size = 256
    cfg.train.eval_every = 100
    cfg.fairness.favourable = "not toxic"
    cfg.fairness.attributes = ("identity", "length")
    cfg.fairness.templates = "toxicity"
    cfg.fairness.examples = 3
    if arg == "smoke":
        cfg.data.limit = 1000  # and 10,000 phrases
        cfg.train.steps = 10
        cfg.train.batch_size = 64
        cfg.fairness.replicates = 200
    return cfg


def sweep():
    """Seeds: of the initialization and the order."""
    for seed in range(5):
        yield {"seed": seed}
