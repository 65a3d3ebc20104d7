"""FedNLP, tagging: parts of speech of UD English EWT, 540 documents as clients.

Source: Lin et al. 2022 (arXiv 2104.08815). `:wnut17` tags the rare entities of WNUT
2017, which nobody is known to have written, in a made partition.

Result, 2026-11-22, test split, 190 s beside other work on two CPU cores: 84.1% [83.5,
84.7] of words tagged right, 87.3% [86.7, 87.8] in one place with as many batches; every
word with its most frequent tag 80.9% [80.3, 81.5]. After 60 rounds of one epoch the
federation was at 80.0%, no better than that.

Two by two optimizers at full size: `configs/fednlp_corners.py`.

`sweep()` is the grid of client and server optimizers, FedProx on and off, over the
partitions, and training in one place: every cell tries the same learning rates on the
validation split and then trains with the best of them for three seeds. The two cells of
FedNLP's rule (AdamW on clients if FedOpt, SGD otherwise, at one rate) are marked:
75 cells, about 1,260 runs, for a cluster (`--launcher=slurm`).

    bash launch/run.sh --config=configs/fednlp_tagging.py
    bash launch/run.sh --config=configs/fednlp_tagging.py:wnut17
    bash launch/run.sh --config=configs/fednlp_tagging.py:centralised
    bash launch/run.sh --config=configs/fednlp_tagging.py:smoke
    python -m launch.sweep --config=configs/fednlp_tagging.py
"""

from trustml import config
from trustml.specs import tune

PARTITIONS = ("natural", "label_dirichlet", "quantity_dirichlet")
SHARED = 0.005  # the one client learning rate of FedNLP's rule
CENTRALISED_STEPS = 8500  # as many batches as the clients have together


def get_config(arg=""):
    """The config; `arg='smoke'` runs a few rounds in under a minute."""
    config.check_argument(arg, ("", "wnut17", "centralised", "smoke"))
    cfg = config.default()
    cfg.experiment = "federate"
    cfg.privacy.enabled = False
    cfg.data.name = "ud_ewt"
    cfg.data.max_length = 40
    cfg.model.name = "gru"
    cfg.model.width = 48
    cfg.model.characters = 2048  # spelling tells a tag where a word is new
    cfg.model.dropout = 0.1
    cfg.tune.client_rates = (0.001, 0.005, 0.03, 0.2, 1.0)
    cfg.tune.server_rates = (0.01, 0.1, 1.0)
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 0.005
    cfg.federated.partition = "natural"
    cfg.federated.clients = 100  # of made partitions
    cfg.federated.alpha = 1.0
    cfg.federated.selection = "fixed_size"
    cfg.federated.cohort = 20
    cfg.federated.epochs = 2
    cfg.train.steps = 150  # rounds
    cfg.train.batch_size = 16  # of a client
    cfg.train.eval_every = 10
    cfg.train.log_every = 5
    if arg == "wnut17":
        cfg.data.name = "wnut17"
        cfg.federated.partition = "label_dirichlet"
        cfg.federated.cohort = 10
        cfg.federated.epochs = 3
    if arg == "centralised":
        cfg.experiment = "centralised"
        cfg.train.steps = CENTRALISED_STEPS
        cfg.train.log_every = 50
        cfg.train.eval_every = 200
    if arg == "smoke":
        cfg.data.limit = 400
        cfg.federated.lanes = 2  # fewer programs to compile
        cfg.train.steps = 4
        cfg.train.eval_every = 2
    return cfg


def sweep():
    """Client x server optimizer x FedProx x partitions; each cell tunes itself."""
    return tune.grid(
        PARTITIONS, shared_rate=SHARED, centralised_steps=CENTRALISED_STEPS
    )
