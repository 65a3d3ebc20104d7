"""FedNLP, classification: 20 Newsgroups with 100 clients.

Source: Lin et al. 2022 (arXiv 2104.08815); labels by Hsu et al. 2019 with alpha = 1 (as
a multiple of the number of labels times their share). `federated.partition=natural` has
its 5,405 authors as clients, `data.name=ag_news` other texts.

Result, 2026-11-22, two CPU cores, test split, 41 s: 70.9% [69.9, 71.9] of 20 groups,
64.3% [63.2, 65.3] in one place with as many batches at the same rate; the most frequent
label 5.2%. Of the grid, four cells tuned over 15 pairs of rates, 3 seeds, as clients x
server: sgd x sgd 22.6% [16.5, 28.8], sgd x adam 65.5% [61.8, 69.3], adamw x sgd 71.5%
[70.0, 72.9], adamw x adam 70.5% [68.9, 72.2]; rates of sgd were five coarse ones. The
rule that changes both optimizers at one rate shows 59.2 points [53.7, 64.7] of FedOpt;
Adam on the server alone is worth 42.9 [36.6, 49.2] with sgd on the clients and -0.9
[-3.8, 2.0] with adamw; against their mean, 38.2 points [32.8, 43.6] are the confound.
With the authors as clients (two posts each, 10 a round, the same cells) the rule hides
what Adam on the server is worth: it shows 7.1 points [-4.3, 18.5], where that is worth
26.1 [22.8, 29.4] with sgd on the clients and 12.5 [9.6, 15.3] with adamw; no cell is
above 33.9% [28.9, 38.8] after 60 rounds.

`sweep()` is the grid of client and server optimizers, FedProx on and off, over the
partitions, and training in one place: every cell tries the same learning rates on the
validation split and then trains with the best of them for three seeds. The two cells of
FedNLP's rule (AdamW on clients if FedOpt, SGD otherwise, at one rate) are marked:
75 cells, about 1,260 runs, for a cluster (`--launcher=slurm`).

    bash launch/run.sh --config=configs/fednlp_classification.py
    bash launch/run.sh --config=configs/fednlp_classification.py:centralised
    bash launch/run.sh --config=configs/fednlp_classification.py:smoke
    python -m launch.sweep --config=configs/fednlp_classification.py
"""

from trustml import config
from trustml.specs import tune

PARTITIONS = ("label_dirichlet", "quantity_dirichlet", "natural")
SHARED = 0.03  # the one client learning rate of FedNLP's rule
CENTRALISED_STEPS = 4200  # as many batches as the clients have together


def get_config(arg=""):
    """The config; `arg='smoke'` runs a few rounds in under a minute."""
    config.check_argument(arg, ("", "centralised", "smoke"))
    cfg = config.default()
    cfg.experiment = "federate"
    cfg.privacy.enabled = False
    cfg.data.name = "newsgroups20"
    cfg.data.max_length = 128  # words of subject and body
    cfg.model.name = "bag"
    cfg.model.width = 64
    cfg.model.hidden = ()
    cfg.model.pooling = "sqrtn"
    cfg.tune.client_rates = (0.003, 0.03, 0.3, 3.0, 30.0)
    cfg.tune.server_rates = (0.01, 0.1, 1.0)
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 0.03
    cfg.federated.partition = "label_dirichlet"
    cfg.federated.clients = 100
    cfg.federated.alpha = 1.0
    cfg.federated.selection = "fixed_size"
    cfg.federated.cohort = 10
    cfg.train.steps = 60  # rounds
    cfg.train.batch_size = 16  # of a client
    cfg.train.eval_every = 10
    cfg.train.log_every = 5
    if arg == "centralised":
        cfg.experiment = "centralised"
        cfg.train.steps = CENTRALISED_STEPS
        cfg.train.log_every = 100
        cfg.train.eval_every = 600
    if arg == "smoke":
        cfg.data.limit = 1000
        cfg.federated.lanes = 2  # fewer programs to compile
        cfg.data.max_length = 64
        cfg.train.steps = 4
        cfg.train.eval_every = 2
    return cfg


def sweep():
    """Client x server optimizer x FedProx x partitions; each cell tunes itself."""
    return tune.grid(
        PARTITIONS, shared_rate=SHARED, centralised_steps=CENTRALISED_STEPS
    )
