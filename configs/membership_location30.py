"""Shadow models of Location-30: 64 MLPs, each on a half of 5,010 people's check-ins.

Source: Shokri et al. 2017 (arXiv 1610.05820) for the data and the question; the design
is that of Carlini et al. 2022 (arXiv 2112.03570), where every example is in half of the
models. Needs $TRUSTML_DATA/location30.
Result, mean of seeds 0 to 2, 2026-11-21, CPU, with 62 references, AUC and members found
at 0.1% false alarms: Student-t 0.940 and 20.6%, LiRA 0.940 and 19.3%, RMIA 0.920 and
20.7%, loss 0.786 and 0.2%; seeds differ by at most 0.002 and 0.6 points. Training all
64 models took 59 s of one core, beside other work, in groups of 8.

    bash launch/run.sh --config=configs/membership_location30.py
    bash launch/run.sh --config=configs/membership_location30.py:smoke
"""

from trustml import config


def get_config(arg=""):
    """The config; `arg='smoke'` trains four models for a few steps."""
    config.check_argument(arg)
    cfg = config.default()
    cfg.experiment = "membership"
    cfg.data.name = "location30"
    cfg.model.name = "mlp"
    cfg.model.hidden = (64,)
    cfg.optimizer.name = "adam"
    cfg.optimizer.learning_rate = 1e-3
    cfg.privacy.enabled = False
    cfg.train.steps = 30 * 39  # 30 epochs of 2,505 members in batches of 64
    cfg.train.batch_size = 64
    cfg.attack.num_models = 64
    if arg == "smoke":
        cfg.attack.num_models = 4
        cfg.attack.group_size = 2
        cfg.train.steps = 39
    return cfg


def sweep():
    """Seeds: of the design, the initialization and the order."""
    for seed in range(3):
        yield {"seed": seed}
