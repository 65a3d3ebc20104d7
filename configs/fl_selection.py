"""Who should be selected in federated learning: all alike, or by activity?

Source: "Learnings from Federated Learning in the Real World" (ICASSP 2022, arXiv
2202.03925): few heavy clients, many light ones; selection by the number of examples.

    bash launch/run.sh --config=configs/fl_selection.py              # nlu_eval
    bash launch/run.sh --config=configs/fl_selection.py:snips
    bash launch/run.sh --config=configs/fl_selection.py:newsgroups   # real authors
    bash launch/run.sh --config=configs/fl_selection.py:shakespeare  # real speakers
    bash launch/run.sh --config=configs/fl_selection.py:smoke
"""

import os

from trustml import config


def get_config(arg=""):
    """The config; `arg` is '', 'snips', 'newsgroups', 'shakespeare' or 'smoke'."""
    config.check_argument(arg, ("", "snips", "newsgroups", "shakespeare", "smoke"))
    cfg = config.default()
    cfg.experiment = "selection_study"
    cfg.data.name = "nlu_eval"
    cfg.data.max_length = 25  # of the longest text
    cfg.data.vocabulary = "train"  # not private; nothing here is
    cfg.data.vocabulary_size = 2198  # words that occur twice or more in train
    cfg.model.name = "logistic"
    cfg.privacy.enabled = False
    cfg.optimizer.name = "sgd"
    cfg.optimizer.learning_rate = 1.0
    cfg.federated.partition = "label_dirichlet"
    cfg.federated.clients = 400
    cfg.federated.alpha = 0.5
    cfg.federated.size_cv = 2.0
    cfg.federated.cohort = 20
    cfg.federated.beta = 0.5  # of arm 'capped'
    cfg.federated.cap = 4.0
    cfg.federated.threshold = 20
    cfg.federated.periods = 6
    cfg.federated.retention = "fifo"
    cfg.federated.storage = 50
    cfg.federated.lanes = 1  # steps are short: more lanes only move more memory
    cfg.train.steps = 120  # rounds
    cfg.train.batch_size = 10  # of a client
    cfg.train.eval_every = 1
    cfg.train.num_devices = 1
    cfg.selection.seeds = 10
    cfg.selection.target = 0.6
    cfg.selection.correlated_seeds = 5
    if arg in ("snips", "smoke"):
        cfg.data.name = "snips"
        cfg.data.vocabulary_size = 4392
        cfg.selection.target = 0.93
    if arg == "newsgroups":
        folder = os.path.join(os.environ.get("TRUSTML_DATA", ""), "newsgroups20")
        cfg.data.path = os.path.join(folder, "train.jsonl.gz")
        cfg.data.test_path = os.path.join(folder, "test.jsonl.gz")
        cfg.data.user_column = "author"
        cfg.data.max_length = 128
        cfg.data.vocabulary_size = 8192
        cfg.federated.partition = "natural"
        cfg.federated.cohort = 50
        cfg.federated.threshold = 5
        cfg.selection.arrival = "scattered"  # most authors wrote one post
        cfg.selection.correlated_seeds = 0
        cfg.selection.seeds = 5
        cfg.selection.settings = ("static_all", "continual")
        cfg.selection.target = 0.4
        cfg.train.steps = 240
        cfg.train.eval_every = 5
    if arg == "shakespeare":
        cfg.data.name = "shakespeare"
        cfg.data.max_length = 80
        cfg.model.name = "language_model"
        cfg.model.width = 16
        cfg.model.hidden = (64,)
        cfg.federated.partition = "natural"
        cfg.federated.threshold = 20
        cfg.federated.max_examples = 100  # the longest part has 1,000 windows
        cfg.selection.arrival = "ordered"  # as the plays go
        cfg.selection.seeds = 3
        cfg.selection.correlated_seeds = 0
        cfg.selection.arms = ("uniform", "capped", "activity")
        cfg.selection.settings = ("static_all", "continual")
        cfg.selection.target = 0.3
        cfg.train.eval_every = 20  # 10,368 windows
    if arg == "smoke":
        cfg.data.limit = 700
        cfg.data.vocabulary_size = 512
        cfg.federated.clients = 40
        cfg.federated.cohort = 5
        cfg.federated.periods = 2
        cfg.federated.storage = 10
        cfg.train.steps = 6
        cfg.selection.seeds = 2
        cfg.selection.correlated_seeds = 1
        cfg.selection.target = 0.3
        cfg.selection.arms = ("uniform", "threshold", "unbiased")
    return cfg


def sweep():
    """Steeper and flatter sizes."""
    for cv in (0.5, 1.0, 2.0, 4.0):
        yield {"federated.size_cv": cv}
