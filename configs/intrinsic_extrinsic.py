"""Intrinsic against extrinsic measures of bias, where the truth was planted.

Source: Cao et al. 2022 (arXiv 2203.13928), who ask whether the two kinds agree over 19
language models, and align notion, group, data and configuration. Here 20 masked
language models are trained at once, each on a synthetic corpus with biases of known
strength, and it is known how much the measures ought to agree.

Result, 2026-11-22, 131 s on 2 busy cores, Spearman's correlation over 20 models with
95% BCa interval; planted are 0.80 in the aligned columns and 0 in the others:

| | TPR gap | polarity | TPR gap, age | TPR gap, shuffled |
|---|---|---|---|---|
| LPBS | .70 [.30, .88] | .75 [.44, .91] | .10 [-.40, .51] | -.54 [-.83, .01] |
| pairs | .63 [.20, .84] | .77 [.41, .91] | .09 [-.41, .53] | -.49 [-.79, .07] |
| SEAT | .44 [-.18, .76] | .32 [-.20, .67] | -.25 [-.68, .30] | -.34 [-.73, .28] |
| CEAT | .11 [-.45, .58] | -.11 [-.59, .41] | -.13 [-.56, .39] | .09 [-.42, .54] |

What reads likelihoods recovers what was planted (0.97 with the strength itself); what
reads embeddings does not (SEAT 0.32, CEAT -0.16), and so misses every aligned pair. All
8 misaligned intervals hold 0. Training must end: after 700 steps some models are still
fair, and LPBS has 0.78 with the strength.

    bash launch/run.sh --config=configs/intrinsic_extrinsic.py
    bash launch/run.sh --config=configs/intrinsic_extrinsic.py:smoke
"""

from trustml import config


def get_config(arg=""):
    """The config; `arg='smoke'` has 6 models that hardly learn."""
    config.check_argument(arg)
    cfg = config.default()
    cfg.experiment = "intrinsic_extrinsic"
    cfg.privacy.enabled = False
    cfg.model.width = 64
    cfg.model.depth = 1
    cfg.model.heads = 8
    cfg.optimizer.learning_rate = 0.004  # Adam, cosine decay to 0
    cfg.train.steps = 3000
    cfg.train.batch_size = 64
    cfg.agreement.models = 20  # with three planted strengths each
    cfg.agreement.planted = 0.8  # correlation of two of them
    cfg.agreement.retrained = (
        2  # models for each, which tells how reliable measures are
    )
    cfg.agreement.published = True  # MiniLM beside them, where it is installed
    if arg == "smoke":
        cfg.agreement.published = False
        cfg.agreement.models = 6
        cfg.agreement.retrained = 1
        cfg.agreement.sentences = 1000
        cfg.agreement.probes = 400
        cfg.agreement.tested = 400
        cfg.train.steps = 60
    return cfg
