"""Secrets planted in SNIPS and read out of joint models of intents and slots.

Source: Parikh, Dupuy, Gupta 2022 (arXiv 2203.13920). A text "my pin code is d d d d" is
planted 0, 1, 10 or 100 times; all 10,000 codes are scored, and the paper's relaxed
attack guesses beside them. Then the same with defences, on fewer seeds.
Seen on 2026-11-22: 9.6 bits [7.7, 11.5] above the control with one copy, 10.9
[9.6, 12.5] with 10; 9 of 16 whole codes at 10 copies undefended, 0 of 6 under DP-SGD,
which is 0.0 [-2.1, 3.5] bits above its control. 15 minutes on two cores beside other
work (a run with the mean of the slots' losses, which costs the same: 7 of 16 at 10
copies). A CPU is one device to JAX unless
XLA_FLAGS=--xla_force_host_platform_device_count=2 is set.

    bash launch/run.sh --config=configs/canary_extraction.py
    bash launch/run.sh --config=configs/canary_extraction.py:smoke
    bash launch/run.sh --config=configs/canary_extraction.py:undefended
    bash launch/run.sh --config=configs/canary_extraction.py:long    # codes of 7 words
    python -m launch.sweep --config=configs/canary_extraction.py     # other data sets
"""

from trustml import config

EPOCH = 206  # steps of 64 of 13,084 + 100 rows


def get_config(arg=""):
    """The config; `arg='smoke'` trains four models for a few steps."""
    config.check_argument(arg, ("", "smoke", "undefended", "long"))
    cfg = config.default()
    cfg.experiment = "canary_extraction"
    cfg.data.name = "snips"  # or atis, nlu_eval
    cfg.data.max_length = 12  # 13% of the texts are longer, and lose their end
    cfg.data.vocabulary = "hashed"
    cfg.data.vocabulary_size = 8192
    cfg.model.name = "gru"
    cfg.model.width = 64
    cfg.model.slot_total = True  # the loss is that of all labels together
    cfg.canary.copies = (0, 1, 10, 100)
    cfg.canary.seeds = 16
    cfg.canary.defences = (
        *("dropout", "early_stopping", "characters", "combined", "dp_sgd"),
    )
    cfg.canary.defence_copies = (0, 10)
    cfg.canary.defence_seeds = 6  # the least with a 95% interval of a median
    # DP-SGD: settings that suit noise and clipping; `baseline` is for all others.
    cfg.privacy.enabled = True
    cfg.privacy.epsilon = 8.0
    cfg.privacy.delta = 1e-5
    cfg.privacy.l2_clip_norm = 0.5
    cfg.optimizer.name = "adam"
    cfg.optimizer.learning_rate = 4e-3
    cfg.train.steps = 150
    cfg.train.batch_size = 512
    cfg.baseline.learning_rate = 2e-3
    cfg.baseline.steps = 12 * EPOCH
    cfg.baseline.batch_size = 64
    cfg.attack.group_size = 2  # larger groups were no quicker by CPU time
    if arg in ("undefended", "long"):
        cfg.canary.defences = ()
        cfg.privacy.enabled = False
    if arg == "long":
        cfg.canary.length = 7
        cfg.canary.attacks = ("beam", "descent", "relaxed")
        cfg.canary.copies = (0, 10, 100)
    if arg == "smoke":
        cfg.canary.copies = cfg.canary.defence_copies = (0, 100)
        cfg.canary.seeds = cfg.canary.defence_seeds = 1
        cfg.canary.length = 3
        cfg.canary.defences = ("dp_sgd",)
        cfg.canary.relaxed_steps = 20
        cfg.canary.restarts = 2
        cfg.baseline.steps = 40
        cfg.train.steps = 4
        cfg.train.batch_size = 64
    return cfg


def sweep():
    """Other data sets, and codes that are no slots."""
    for name in ("snips", "atis", "nlu_eval"):
        for tags in ("slot", "outside"):
            yield {"data.name": name, "canary.code_tags": tags}
