"""Prediction sensitivity against a planted leak, explicit and implicit cues.

Source: Krishna et al. 2022 (arXiv 2203.08670), whose claim is tested where the truth
is known: sensitivity with a protected status model sees bias that exchanging words
cannot. 11 leaks x 5 seeds x 2 kinds of cue, 110 small classifiers.

Result, 2026-11-22, 18 s on 2 cores, Spearman's correlation with the planted leak, mean
of 5 seeds with 95% t-interval:

| measure | explicit cues | implicit cues |
|---|---|---|
| displacement | 1.00 [1.00, 1.00] | 1.00 [0.99, 1.00] |
| share of path-integrated | 0.93 [0.89, 0.97] | 0.93 [0.91, 0.95] |
| path-integrated | 0.61 [0.58, 0.64] | 0.61 [0.51, 0.71] |
| plain |J|v | 0.05 [0.01, 0.10] | 0.05 [0.03, 0.08] |
| counterfactual gap | 1.00 [1.00, 1.00] | 0 at every leak: it is blind |

The plain form is largest at a leak of 0.5 and nearly 0 at 1, where the classifier is
certain: it saturates.

    bash launch/run.sh --config=configs/prediction_sensitivity.py
    bash launch/run.sh --config=configs/prediction_sensitivity.py:smoke
"""

from trustml import config


def get_config(arg=""):
    """The config; `arg='smoke'` has 3 leaks and one seed."""
    config.check_argument(arg)
    cfg = config.default()
    cfg.experiment = "prediction_sensitivity"
    cfg.privacy.enabled = False
    cfg.model.width = 24
    cfg.model.hidden = (48,)
    cfg.optimizer.learning_rate = 0.01  # Adam, cosine decay to 0
    cfg.train.steps = 600
    cfg.train.batch_size = 128
    cfg.leak.seeds = 5
    if arg == "smoke":
        cfg.leak.leaks = (0.0, 0.4, 1.0)
        cfg.leak.seeds = 1
        cfg.train.steps = 100
    return cfg
