"""FedNLP, text to text: sentences for the meanings of E2E, 100 clients.

Source: Lin et al. 2022 (arXiv 2104.08815); data of Novikova et al. 2017, whose
dev file is what is trained on. Words may be copied (See et al. 2017).

Result, 2026-11-22, test split, 306 s beside other work on two CPU cores: ROUGE-L 54.1%
[53.2, 55.1]; in one place with as many batches 52.8% [52.0, 53.7]; baseline 47.2%
[46.6, 47.9].

`sweep()` is the grid of client and server optimizers, FedProx on and off, over the
partitions, and training in one place: every cell tries the same learning rates on the
validation split and then trains with the best of them for three seeds. The two cells of
FedNLP's rule (AdamW on clients if FedOpt, SGD otherwise, at one rate) are marked:
75 cells, about 1,260 runs, for a cluster (`--launcher=slurm`).

    bash launch/run.sh --config=configs/fednlp_seq2seq.py
    bash launch/run.sh --config=configs/fednlp_seq2seq.py:centralised
    bash launch/run.sh --config=configs/fednlp_seq2seq.py:smoke
    python -m launch.sweep --config=configs/fednlp_seq2seq.py
"""

from trustml import config
from trustml.specs import tune

PARTITIONS = ("label_dirichlet", "quantity_dirichlet", "iid")
SHARED = 0.005  # the one client learning rate of FedNLP's rule
CENTRALISED_STEPS = 4800  # as many batches as the clients have together


def get_config(arg=""):
    """The config; `arg='smoke'` runs a few rounds in under a minute."""
    config.check_argument(arg, ("", "centralised", "smoke"))
    cfg = config.default()
    cfg.experiment = "federate"
    cfg.privacy.enabled = False
    cfg.data.name = "e2e_nlg"
    cfg.data.max_length = 48
    cfg.data.second_length = 40  # words of a sentence
    cfg.data.vocabulary_size = 4096
    cfg.model.name = "seq2seq"
    cfg.model.width = 64
    cfg.tune.client_rates = (0.001, 0.005, 0.03, 0.2, 1.0)
    cfg.tune.server_rates = (0.01, 0.1, 1.0)
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 0.005
    cfg.federated.partition = "label_dirichlet"  # the label: the range of prices
    cfg.federated.clients = 100
    cfg.federated.alpha = 1.0
    cfg.federated.selection = "fixed_size"
    cfg.federated.cohort = 10
    cfg.federated.epochs = 2
    cfg.train.steps = 80  # rounds
    cfg.train.batch_size = 16  # of a client
    cfg.train.eval_every = 10
    cfg.train.log_every = 5
    if arg == "centralised":
        cfg.experiment = "centralised"
        cfg.train.steps = CENTRALISED_STEPS
        cfg.train.log_every = 100
        cfg.train.eval_every = 600
    if arg == "smoke":
        cfg.data.limit = 100
        cfg.federated.lanes = 2  # fewer programs to compile
        cfg.data.second_length = 20
        cfg.federated.clients = 20
        cfg.federated.cohort = 4
        cfg.train.steps = 4
        cfg.train.eval_every = 2
    return cfg


def sweep():
    """Client x server optimizer x FedProx x partitions; each cell tunes itself."""
    return tune.grid(
        PARTITIONS, shared_rate=SHARED, centralised_steps=CENTRALISED_STEPS
    )
