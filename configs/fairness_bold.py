"""What does a small language model say about whom? BOLD, with scorers of our own.

Source: Dhamala et al. 2021 (arXiv 2101.11718) for prompts and measures. A GPT-2 of 1.1
million parameters is trained on 300,000 words of Wikipedia and continues 3,999 prompts
of 43 groups, three times each; scorers of sentiment and toxicity are trained here.
Needs $TRUSTML_DATA with bold, wikitext2, squad, sst, toxicity_bias and glove50_small.

Result of one run, 2026-11-22, CPU (7.5 minutes of one core, 15 on a busy machine), 95%
intervals. Scorers, held out: sentiment, accuracy 0.821 [0.794, 0.846] (floor 0.79);
toxicity, AUC 0.946 [0.937, 0.955] (floor 0.94), but BPSN 0.685 [0.648, 0.718] on
templates (gay 0.36): it is itself biased. Language model: perplexity 247 a piece of a
word, 2.26 bits a character; its sentences are poor, its scores much the same for all.

Largest gap over groups, in brackets the 95% quantile by chance:

| | sentiment | toxicity | polarity, words |
|---|---|---|---|
| gender: model | .010 (.044) | .009 (.019) | .020 (.041) |
| gender: people | .072 (.082) | .046 (.048) | .370 (.130) |
| politics: model | .072 (.093) | .031 (.048) | .036 (.081) |
| politics: people | .193 (.194) | .082 (.104) | .043 (.091) |
| profession: model | .044 (.099) | .023 (.055) | .047 (.080) |
| profession: people | .217 (.230) | .100 (.104) | .040 (.096) |
| race: model | .019 (.059) | .026 (.034) | .047 (.054) |
| race: people | .098 (.118) | .021 (.059) | .140 (.225) |
| religion: model | .037 (.067) | .012 (.032) | .033 (.056) |
| religion: people | .029 (.128) | .099 (.085) | .030 (.073) |

None of the model's 25 gaps (those of masked sentiment and polarity by vectors too) is
beyond chance, 4 of people's are. By words 625 texts of the model are about men and 40
about women, even after prompts about actresses. Its texts score less positive than
those of people for 12 of 38 groups, more toxic for 7.

bash launch/run.sh --config=configs/fairness_bold.py
bash launch/run.sh --config=configs/fairness_bold.py:smoke
"""

from trustml import config


def get_config(arg=""):
    """The config; `arg='smoke'` trains everything for a few steps."""
    config.check_argument(arg)
    cfg = config.default()
    cfg.experiment = "generation"
    cfg.privacy.enabled = False
    cfg.model.width = 128  # of the language model, a GPT-2
    cfg.model.depth = 3
    cfg.model.heads = 4
    cfg.model.checkpoint = ""  # a directory with a published GPT-2, in place of it
    cfg.optimizer.name = "adamw"
    cfg.optimizer.learning_rate = 4e-3
    cfg.optimizer.weight_decay = 0.01
    cfg.optimizer.schedule = "cosine"
    cfg.optimizer.warmup_steps = 50
    cfg.train.steps = 1600
    cfg.train.batch_size = 8
    cfg.train.log_every = 50
    cfg.generation.vocabulary_size = 4096  # pieces of words
    cfg.generation.window = 72  # tokens
    cfg.generation.prompts = 100  # of each group
    cfg.generation.samples = 3  # texts of each prompt
    cfg.generation.max_new_tokens = 32  # of a text, at most one sentence
    cfg.generation.temperature = 0.8  # top k and top p sort, which is slow on CPUs
    if arg == "smoke":
        cfg.model.width = 32
        cfg.model.depth = 1
        cfg.optimizer.warmup_steps = 2
        cfg.train.steps = 20
        cfg.generation.corpora = ("wikitext2",)
        cfg.generation.prompts = 10
        cfg.generation.samples = 1
        cfg.generation.max_new_tokens = 12
        cfg.generation.scorer_steps = 20
        cfg.generation.scorer_limit = 1000
        cfg.generation.replicates = 200
    return cfg


def sweep():
    """Seeds: of prompts, training and texts."""
    for seed in range(3):
        yield {"seed": seed}
