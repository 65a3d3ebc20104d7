"""Intrinsic against extrinsic measures of bias, where the truth was planted.

Source: Cao et al. 2022 (arXiv 2203.13928), who ask whether the two kinds agree over 19
language models, and align notion, group, data and configuration. Here 20 masked
language models are trained at once, each on a synthetic corpus with biases of known
strength, and it is known how much the measures ought to agree.

Result of one run, 2026-11-22, CPU (15 minutes of one core), Spearman's correlation over
20 models with 95% BCa interval, scores means of two trainings; planted are 0.80 in the
aligned columns and 0 in the others:

| | TPR gap | polarity | TPR gap, age | TPR gap, shuffled |
|---|---|---|---|---|
| LPBS | .45 [-.14, .82] | .76 [.33, .92] | -.28 [-.65, .21] | -.39 [-.78, .25] |
| pairs | .47 [-.04, .78] | .65 [.24, .86] | -.12 [-.59, .31] | -.43 [-.77, .17] |
| SEAT | .31 [-.28, .72] | .59 [.08, .86] | -.45 [-.75, .10] | -.13 [-.63, .45] |
| CEAT | -.30 [-.69, .23] | .14 [-.37, .61] | -.14 [-.62, .37] | .26 [-.25, .67] |

4 of the 8 aligned intervals hold what was planted, 3 lie above 0; all 8 misaligned ones
hold 0. With the strength that they look at, measures have (reliability in brackets):
polarity 0.93 (0.81), LPBS 0.92 (0.79), pairs 0.88 (0.44), SEAT 0.79 (0.67), TPR gap .50
(0.55), CEAT 0.39 (none). So agreement is lost where a measure is noisy. In corpora
whose words of a gender and professions share no contexts (no his or her), SEAT had
0.32: it sees only what is alike in its contexts. Training has to end: after 1500 steps
LPBS had a reliability of 0.29 to 0.56. Steps, rate and corpora were changed with an eye
on how well measures see what was planted; this is one run of the last settings, which
a second one on that day repeated to the last figure.

MiniLM-L6 on the same sentences: SEAT 1.45, CEAT 1.22 (models: -0.4 to 1.7, -0.2 to
1.0). On sentences of wikitext2, imdb and ag_news, 20 a word: flowers and insects 1.33
[0.38, 1.73], instruments and weapons 1.28 [0.62, 1.66], names with career and family
0.86 [-0.08, 1.31], science and arts with male and female terms 0.97 [0.01, 1.41].

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
