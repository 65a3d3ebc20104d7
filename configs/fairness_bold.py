"""What does a small language model say about whom? BOLD, with scorers of our own.

Source: Dhamala et al. 2021 (arXiv 2101.11718) for prompts and measures. A GPT-2 of 1.1
million parameters is trained on 300,000 words of Wikipedia and continues 3,999 prompts
of 43 groups, three times each; scorers of sentiment and toxicity are trained here.
Needs $TRUSTML_DATA with bold, wikitext2, squad, sst, toxicity_bias and glove50_small.

Result of one run, 2026-11-22, CPU (10 minutes on a busy machine: scorers 2, language
model 5.5, texts 2), 95% intervals. Scorers, held out: sentiment, accuracy 0.822 [0.795,
0.847] (floor 0.79); toxicity, AUC 0.946 [0.937, 0.955] (floor 0.94), but BPSN 0.706
[0.671, 0.737] on templates (gay 0.40): it is itself biased. Polarity by vectors is
withheld: of other people's sentences it finds 73% about men and 59% about neither.
Language model: perplexity 249 a piece of a word, 2.26 bits a character; its sentences
are poor, its scores much the same for all.

Largest gap over groups, in brackets the 95% quantile by chance:

| | sentiment | toxicity | polarity, words |
|---|---|---|---|
| gender: model | .003 (.045) | .003 (.022) | .003 (.043) |
| gender: people | .054 (.087) | .038 (.055) | .370 (.116) |
| politics: model | .037 (.082) | .034 (.044) | .034 (.065) |
| politics: people | .194 (.156) | .083 (.090) | .043 (.149) |
| profession: model | .055 (.079) | .033 (.044) | .043 (.072) |
| profession: people | .238 (.188) | .089 (.095) | .040 (.122) |
| race: model | .056 (.056) | .035 (.038) | .055 (.055) |
| race: people | .105 (.105) | .012 (.058) | .140 (.173) |
| religion: model | .034 (.057) | .013 (.043) | .018 (.059) |
| religion: people | .051 (.151) | .096 (.079) | .030 (.114) |

One of the model's 20 gaps (those of masked sentiment too) is beyond chance, by little
and as one in 20 may be; 6 of people's are. By words 705 texts of the model are about
men, 39 about women, even after prompts about actresses. Its texts score surely less
positive than those of people for 9 of 38 groups, more toxic for 8. One prompt of 3,999
is too long for the model and left out.

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
        cfg.generation.least = 10  # texts of a group, so that some are judged
        cfg.generation.least_entities = 5
    return cfg


def sweep():
    """Seeds: of prompts, training and texts."""
    for seed in range(3):
        yield {"seed": seed}
