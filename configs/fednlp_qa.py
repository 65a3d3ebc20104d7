"""FedNLP, span extraction: SQuAD, 38 articles as clients.

Source: Lin et al. 2022 (arXiv 2104.08815); reader after Chen et al. 2017
(arXiv 1704.00051). The test questions are about 10 other articles: clients that nobody
has trained on.

Result, 2026-11-22, two CPU cores, test questions, 159 s: F1 of words 34.8% [33.1,
36.8], exact 21.2% [19.4, 23.1]; in one place with as many batches 32.1% [30.3, 33.9]
and 19.8%; baseline 10.3% [9.6, 11.0] and 0%.

Two by two optimizers at full size: `configs/fednlp_corners.py`.

`sweep()` is the grid of client and server optimizers, FedProx on and off, over the
partitions, and training in one place: every cell tries the same learning rates on the
validation split and then trains with the best of them for three seeds. The two cells of
FedNLP's rule (AdamW on clients if FedOpt, SGD otherwise, at one rate) are marked:
75 cells, about 1,260 runs, for a cluster (`--launcher=slurm`).

    bash launch/run.sh --config=configs/fednlp_qa.py
    bash launch/run.sh --config=configs/fednlp_qa.py:centralised
    bash launch/run.sh --config=configs/fednlp_qa.py:smoke
    python -m launch.sweep --config=configs/fednlp_qa.py
"""

from trustml import config
from trustml.specs import tune

PARTITIONS = ("natural", "label_dirichlet", "quantity_dirichlet")
SHARED = 0.005  # the one client learning rate of FedNLP's rule
CENTRALISED_STEPS = 2500  # as many batches as the clients have together


def get_config(arg=""):
    """The config; `arg='smoke'` runs a few rounds in under a minute."""
    config.check_argument(arg, ("", "centralised", "smoke"))
    cfg = config.default()
    cfg.experiment = "federate"
    cfg.privacy.enabled = False
    cfg.data.name = "squad"
    cfg.data.max_length = 128  # words of a paragraph
    cfg.data.second_length = 20  # of a question
    cfg.model.name = "reader"
    cfg.model.width = 48
    cfg.model.dropout = 0.2
    cfg.tune.client_rates = (0.001, 0.005, 0.03, 0.2, 1.0)
    cfg.tune.server_rates = (0.01, 0.1, 1.0)
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 0.005
    cfg.federated.partition = "natural"
    cfg.federated.clients = 40  # of made partitions
    cfg.federated.alpha = 1.0
    cfg.federated.selection = "fixed_size"
    cfg.federated.cohort = 8
    cfg.train.steps = 25  # rounds
    cfg.train.batch_size = 16  # of a client
    cfg.train.eval_every = 5
    cfg.train.log_every = 5
    if arg == "centralised":
        cfg.experiment = "centralised"
        cfg.train.steps = CENTRALISED_STEPS
        cfg.train.log_every = 50
        cfg.train.eval_every = 250
    if arg == "smoke":
        cfg.data.limit = 100
        cfg.federated.lanes = 2  # fewer programs to compile
        cfg.data.max_length = 64
        cfg.federated.cohort = 4
        cfg.train.steps = 2
        cfg.train.eval_every = 1
    return cfg


def sweep():
    """Client x server optimizer x FedProx x partitions; each cell tunes itself."""
    return tune.grid(
        PARTITIONS, shared_rate=SHARED, centralised_steps=CENTRALISED_STEPS
    )
