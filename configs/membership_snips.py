"""Membership attacks against privacy: a bag of words on SNIPS or ATIS.

Source: the question of Dupuy, Arava, Gupta, Rumshisky 2022 (eDP-SGD, arXiv 2107.14586),
what a membership attack finds as epsilon falls; the attacks are the strong ones of
`trustml.attacks`, with shadow models trained exactly as the target is, noise included.
Result, seed 0, 2026-11-21, CPU: AUC with 14 references, each within 0.005 (bootstrap
over targets and examples), SNIPS left, ATIS right:

| epsilon    | Student-t | offline | RMIA | loss | Student-t | offline | RMIA | loss |
| ---------- | ----- | ----- | ----- | ----- | ----- | ----- | ----- | ----- |
| no privacy | 0.683 | 0.661 | 0.676 | 0.545 | 0.621 | 0.596 | 0.626 | 0.533 |
| 8          | 0.513 | 0.542 | 0.542 | 0.506 | 0.523 | 0.550 | 0.556 | 0.506 |
| 4          | 0.510 | 0.538 | 0.539 | 0.506 | 0.513 | 0.541 | 0.546 | 0.505 |
| 1          | 0.504 | 0.528 | 0.527 | 0.505 | 0.502 | 0.524 | 0.525 | 0.502 |

Little leaks under privacy, and the gap between IN and OUT is then lost in the noise of
seven references a side: attacks that do not look for it find more than online ones.

The same models in the columns of eDP-SGD: their accuracy, balanced accuracy of RMIA
(within 0.2 points of the strongest) and of Shokri's attack (4 targets), each at
thresholds fixed on shadow models, within 0.6 points (Shokri's within 1), and members
found by RMIA at 1% false alarms; SNIPS left, ATIS right:

| epsilon    | accuracy | RMIA | Shokri | at 1% | accuracy | RMIA | Shokri | at 1% |
| ---------- | ----- | ----- | ----- | ---- | ----- | ----- | ----- | ---- |
| no privacy | 98.0% | 61.7% | 55.4% | 6.3% | 95.0% | 57.6% | 54.5% | 7.2% |
| 8          | 96.0% | 52.9% | 50.3% | 1.6% | 84.5% | 53.4% | 50.6% | 2.4% |
| 4          | 95.5% | 52.6% | 50.2% | 1.5% | 82.1% | 52.9% | 50.4% | 1.9% |
| 1          | 93.9% | 51.9% | 50.2% | 1.3% | 78.6% | 51.7% | 50.5% | 1.3% |

At epsilon = 1 no attack has more than 51.9% [51.7, 52.2] and 51.7% [51.1, 52.3]. For a
lower bound on epsilon beside them, --config.attack.design=independent.

    bash launch/run.sh --config=configs/membership_snips.py
    bash launch/run.sh --config=configs/membership_snips.py:atis   # $TRUSTML_DATA/atis
    bash launch/run.sh --config=configs/membership_snips.py:smoke
"""

from trustml import config


def get_config(arg=""):
    """The config; `arg` is '', 'atis' or 'smoke'."""
    config.check_argument(arg, ("", "atis", "smoke"))
    cfg = config.default()
    cfg.experiment = "membership"
    cfg.data.name = "atis" if arg == "atis" else "snips"
    cfg.data.max_length = 24
    cfg.data.vocabulary = "hashed"  # public: nothing is learnt from the text
    cfg.data.vocabulary_size = 4096
    cfg.model.name = "bag"
    cfg.model.width = 64
    cfg.model.hidden = ()
    cfg.model.pooling = "sqrtn"
    cfg.optimizer.name = "adam"
    cfg.optimizer.learning_rate = 1e-2
    cfg.privacy.delta = 1e-5
    cfg.privacy.l2_clip_norm = 0.1
    cfg.train.steps = 150
    cfg.train.batch_size = 256
    # Without privacy it is trained until it fits its examples, as one would.
    cfg.baseline.steps = 600
    cfg.baseline.batch_size = 64
    cfg.baseline.learning_rate = 5e-3
    cfg.attack.num_models = 16
    cfg.attack.references = (4,)
    cfg.attack.epsilons = (1.0, 4.0, 8.0)
    cfg.attack.group_size = 4
    if arg == "smoke":
        cfg.data.limit = 400
        cfg.attack.num_models = 4
        cfg.attack.references = ()
        cfg.attack.epsilons = (8.0,)
        cfg.train.steps = cfg.baseline.steps = 5
        cfg.train.batch_size = cfg.baseline.batch_size = 32
    return cfg


def sweep():
    """Seeds: of the design, the initialization, the order and the noise."""
    for seed in range(3):
        yield {"seed": seed}
