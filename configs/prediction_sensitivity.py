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

On 4,640 posts of HateXplain about men or about women ('hatexplain', which needs
$TRUSTML_DATA/hatexplain; 2026-11-22, 75 s of CPU time), with he-words and she-words,
and where they are taken out:

| measure | with them | without |
|---|---|---|
| displacement | 0.99 [0.97, 1.00] | 0.98 [0.96, 1.00] |
| share of path-integrated | 0.98 [0.96, 1.00] | 0.99 [0.99, 1.00] |
| path-integrated | 0.85 [0.78, 0.93] | 0.91 [0.78, 1.00] |
| plain |J|v | -0.46 [-0.55, -0.38] | 0.21 [-0.19, 0.61] |
| counterfactual gap | 0.99 [0.97, 1.00], coverage 91% | 0 at every leak |

Without those words the status model is right in 58% of posts only, and what it goes by
still moves the classifier.

    bash launch/run.sh --config=configs/prediction_sensitivity.py
    bash launch/run.sh --config=configs/prediction_sensitivity.py:hatexplain
    bash launch/run.sh --config=configs/prediction_sensitivity.py:smoke
"""

from trustml import config


def get_config(arg=""):
    """The config; 'hatexplain' has real posts, 'smoke' 3 leaks and one seed."""
    config.check_argument(arg, ("", "smoke", "hatexplain"))
    cfg = config.default()
    cfg.experiment = "prediction_sensitivity"
    cfg.privacy.enabled = False
    cfg.model.width = 24
    cfg.model.hidden = (48,)
    cfg.optimizer.learning_rate = 0.01  # Adam, cosine decay to 0
    cfg.train.steps = 600
    cfg.train.batch_size = 128
    cfg.leak.seeds = 5
    if arg == "hatexplain":
        cfg.leak.texts = "hatexplain"
        cfg.leak.examples = 3000
        cfg.leak.tested = 1000
    if arg == "smoke":
        cfg.leak.leaks = (0.0, 0.4, 1.0)
        cfg.leak.seeds = 1
        cfg.train.steps = 100
    return cfg
