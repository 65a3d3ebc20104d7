"""Which identity words alone look toxic? Wikipedia comments and 76,564 phrases.

Source: Dixon et al. 2018 (https://doi.org/10.1145/3278721.3278729) for data and
templates; areas of Borkan et al. 2019 (arXiv 1903.04561). Trained on 10,000 of 12,180
balanced comments (a seeded permutation), tested on the other 2,180 and on templates
with 50 identity terms. Needs $TRUSTML_DATA/toxicity_bias.

Result of one run, 2026-11-22, CPU (3 minutes of one core): AUC 0.945 [0.936, 0.954] on
the comments (logistic regression on tf-idf: 0.943 with C = 1, 0.951 with C = 10).
Harmless comments with an identity term are called toxic in 20.4% of cases, others in
10.5%; gap 9.9 points [2.2, 18.6], by chance up to 6.3. On the templates: AUC 0.840
[0.822, 0.854]; power means: subgroup 0.891 [0.870, 0.906], BPSN 0.675 [0.639, 0.708],
BNSP 0.790 [0.764, 0.810]; lowest BPSN: homosexual, 0.383 [0.355, 0.410], and gay, 0.391
[0.363, 0.418]. Some twenty settings were tried with an eye on the test comments, so the
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
