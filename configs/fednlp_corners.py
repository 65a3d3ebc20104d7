"""FedNLP's confound in an hour: 2 x 2 optimizers, fewer rates, one task at full size.

Source: Lin et al. 2022 (arXiv 2104.08815), who give AdamW to the clients with FedOpt
and SGD with FedAvg: two things change at once. Here both change alone. The tasks are
those of `configs/fednlp_{classification,tagging,qa,seq2seq}.py`, whose own sweeps have
momentum, Yogi, FedProx and three partitions besides.

Each of the four cells tries six pairs of rates on the validation split, chosen around
what its optimizers stand, and trains with the best for three seeds; the two cells of
FedNLP's rule are run at its one rate as well.

    bash launch/run.sh --config=configs/fednlp_corners.py:qa
    bash launch/run.sh --config=configs/fednlp_corners.py:smoke
    python -m launch.sweep --config=configs/fednlp_corners.py:qa
    python -m launch.sweep --config=configs/fednlp_corners.py:tagging
    python -m launch.sweep --config=configs/fednlp_corners.py:seq2seq
"""

from configs import fednlp_classification, fednlp_qa, fednlp_seq2seq, fednlp_tagging
from trustml import config

TASKS = {
    "qa": fednlp_qa,
    "tagging": fednlp_tagging,
    "seq2seq": fednlp_seq2seq,
    "classification": fednlp_classification,
}
SHARED = 0.005  # the one client learning rate of FedNLP's rule
CLIENT = {"sgd": (SHARED, 1.0, 5.0), "adamw": (0.001, SHARED, 0.03)}
SERVER = {"sgd": (0.3, 1.0), "adam": (0.01, 0.1)}
RULE = (("sgd", "sgd"), ("adamw", "adam"))


def get_config(arg=""):
    """The config; `arg` is the task, or 'smoke' for a few rounds of QA."""
    config.check_argument(arg, ("", *TASKS, "smoke"))
    smoke = "smoke" if arg == "smoke" else ""
    cfg = TASKS.get(arg, fednlp_qa).get_config(smoke)
    cfg.experiment = "tune"
    cfg.tune.client_rates = CLIENT["adamw"]
    cfg.tune.server_rates = SERVER["adam"]
    return cfg


def sweep():
    """The four cells."""
    for client, client_rates in CLIENT.items():
        for server, server_rates in SERVER.items():
            yield {
                "optimizer.name": client,
                "federated.server_optimizer": server,
                "tune.client_rates": client_rates,
                "tune.server_rates": server_rates,
                "tune.shared_rate": SHARED if (client, server) in RULE else 0.0,
            }
