"""An audit of DP-SGD: gradient canaries in our own trainer, at epsilon 1, 4 and 10.

Sources: Nasr et al. 2023 (arXiv 2302.07956) for the canaries and the Gaussian bound,
Steinke et al. 2023 (arXiv 2305.08846) for one run. A small CNN on scikit-learn's 8x8
digits, full batches, 40,000 canaries of which a fair coin lets half in.
Time: 58 s of CPU time in all (`time`, 2026-11-21, 2 shared cores). Noise and coins are
secret, so each run differs.

Result, 2026-11-21, one run at each budget: epsilon at least, 99% confidence each, and
test accuracy of the model that was trained beside the canaries:

    promised   Gaussian   (eps, delta) band   one run   accuracy
    1          0.74       0.39                0.49      88%
    4          3.77       1.87                1.88      93%
    10         9.56       4.06                3.77      94%

    bash launch/run.sh --config=configs/audit_dpsgd.py
    bash launch/run.sh --config=configs/audit_dpsgd.py:smoke
"""

from trustml import config


def get_config(arg=""):
    """The config; `arg='smoke'` audits one budget with few canaries."""
    config.check_argument(arg)
    cfg = config.default()
    cfg.experiment = "audit"
    cfg.data.name = "digits"
    cfg.model.name = "cnn"
    cfg.model.channels = (8,)
    cfg.model.hidden = ()
    cfg.optimizer.name = "adam"
    cfg.optimizer.learning_rate = 2e-2
    cfg.privacy.delta = 1e-5
    cfg.privacy.l2_clip_norm = 1.0
    cfg.train.steps = 20
    cfg.train.batch_size = 256  # of a run without canaries; here batches are full
    cfg.train.physical_batch_size = 8192
    cfg.audit.epsilons = (1.0, 4.0, 10.0)
    cfg.audit.canaries = 40_000
    cfg.audit.alpha = 0.01
    cfg.audit.sample_rate = 1.0  # 0: batch_size over the examples
    if arg == "smoke":
        cfg.audit.epsilons = (4.0,)
        cfg.audit.canaries = 1000
        cfg.train.steps = 3
        cfg.train.physical_batch_size = 512
    return cfg


def sweep():
    """Full batches and sampled ones, three seeds each."""
    for rate in (1.0, 0.0):
        for seed in range(3):
            yield {"audit.sample_rate": rate, "seed": seed}
