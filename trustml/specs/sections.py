"""What is learnt from, the model, its optimizer and how long it is trained."""

import dataclasses

from trustml import _validate

DATASETS = (
    *("snips", "atis", "nlu_eval", "ag_news", "sst2", "clinc150"),
    *("digits", "mnist", "adult", "location30", "newsgroups20", "shakespeare"),
    *("wnut17", "ud_ewt", "squad", "e2e_nlg"),
    *("compas", "hatexplain", "toxicity", "file"),
)
KINDS = {
    "wnut17": "tagging",
    "ud_ewt": "tagging",
    "squad": "span",
    "e2e_nlg": "seq2seq",
}  # what is learnt from an example; 'classification' of all others
WITH_USERS = ("newsgroups20", "shakespeare", "ud_ewt", "squad")  # say whose a row is
VOCABULARIES = ("hashed", "train", "pretrained")
MODELS = (
    *("logistic", "bag", "mlp", "cnn", "bilstm", "gru", "transformer", "bert"),
    *("language_model", "reader", "seq2seq"),
)
ADAPTERS = ("lora", "bias")
POOLINGS = ("mean", "sqrtn", "cls", "first_last", "every_second", "all_layers")
COMPUTE_DTYPES = ("float32", "bfloat16")
OPTIMIZERS = (
    *("sgd", "momentum", "adam", "adam_bc", "adamw", "lamb", "lion"),
    *("adagrad", "rmsprop"),
)
SCHEDULES = ("constant", "cosine", "linear")
AUGMENTATIONS = ("shift", "shift_flip", "word_dropout")
BACKENDS = ("shard_map", "pmap")
DESIGNS = ("paired", "independent")

_POOLINGS_OF = {
    "bag": ("mean", "sqrtn"),
    "bert": ("mean", "cls", "first_last", "every_second", "all_layers"),
    "transformer": ("mean", "cls"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What is learnt from.

    Attributes:
      name: one of `DATASETS`; 'file' (implied by `path`) reads your own.
      path: TSV, JSONL or CSV file of training rows.
      valid_path: the same for validation; '' takes `valid_fraction` of the training
        rows.
      test_path: the same for testing; '' takes a tenth of the training rows.
      text_column: column with the text.
      label_column: column with the label.
      tokens_column: column with space-separated tokens, where there are slots.
      slots_column: column with one slot label a token.
      feature_columns: columns with numbers, in place of text.
      user_column: column of `path` that says whose each row is: the rows of a user stay
        in one split, and may be the unit of privacy (`privacy.unit`).
      max_length: tokens kept of a text.
      second_length: tokens kept of a question ('squad') or a target ('e2e_nlg').
      vocabulary: 'hashed' (public: nothing is learnt from the data), 'train' (made of
        the training text, hence itself a release of private data) or 'pretrained'.
      vocabulary_size: number of token ids.
      valid_fraction: share of the training rows kept for validation, in [0, 1).
      limit: examples kept of every split (train, valid and test), chosen at random
        with `seed`; 0 = all.
    """

    name: str = "snips"
    path: str = ""
    valid_path: str = ""
    test_path: str = ""
    text_column: str = "text"
    label_column: str = "label"
    tokens_column: str = ""
    slots_column: str = ""
    feature_columns: tuple[str, ...] = ()
    user_column: str = ""
    max_length: int = 32
    second_length: int = 32
    vocabulary: str = "hashed"
    vocabulary_size: int = 8192
    valid_fraction: float = 0.1
    limit: int = 0

    def __post_init__(self):
        _validate.one_of("data.name", self.name, DATASETS)
        if self.name == "file" and not self.path:
            cure = "set data.path to a TSV, JSONL or CSV file"
            _validate.fail("data.name", "file", "needs data.path", cure)
        if self.user_column and self.name != "file":
            bound = f"has no effect on data.name={self.name!r}"
            cure = "set data.path to a file with that column"
            _validate.fail("data.user_column", self.user_column, bound, cure)
        _validate.integer_at_least("data.max_length", self.max_length, 1)
        _validate.integer_at_least("data.second_length", self.second_length, 1)
        _validate.one_of("data.vocabulary", self.vocabulary, VOCABULARIES)
        _validate.integer_at_least("data.vocabulary_size", self.vocabulary_size, 2)
        _validate.in_half_open_interval(
            "data.valid_fraction", self.valid_fraction, 0, 1
        )
        _validate.integer_at_least("data.limit", self.limit, 0, "0 takes all examples")

    @property
    def kind(self) -> str:
        """What is learnt from an example: one of the kinds of `data.dataset`."""
        return KINDS.get(self.name, "classification")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What learns; each model reads the fields that apply to it.

    Attributes:
      name: one of `MODELS`; 'reader' is for spans, 'seq2seq' for sentences, and 'gru'
        alone tags words without an intent.
      width: width of embeddings and layers.
      depth: number of transformer blocks.
      heads: attention heads; must divide `width`.
      hidden: widths of the hidden dense layers.
      channels: channels of the convolutions.
      bigrams: buckets of hashed word pairs ('bag'); 0 for single words only.
      characters: buckets of hashed character n-grams that the vectors of words are made
        of ('gru'), of a table that is not private; 0 gives every word its own.
      slot_total: the loss of slots is the sum over tokens, not their mean ('gru').
      pooling: one of `POOLINGS`, from tokens to text: 'mean', 'sqrtn' ('bag': the sum
        over the square root of the length), 'cls' ('bert', 'transformer'),
        'first_last', 'every_second' or 'all_layers' ('bert').
      wide: add a linear classifier of the word pieces to the head ('bert').
      cache_features: compute what a frozen encoder says of each text once, before
        training ('bert'; only a head may then be trained).
      dropout: probability of dropping a unit in training, in [0, 1).
      compute_dtype: of activations; parameters, norms, sums and noise are float32.
      checkpoint: directory in the Hugging Face layout ('bert').
      remat: recompute activations in the backward pass.
      scan_layers: one scan over stacked blocks in place of an unrolled stack.
      adapter: one of `ADAPTERS`, what is trained of 'bert' beside the head where
        `privacy.trainable` does not say: low-rank adapters of queries and values
        ('lora'), or biases alone; '' trains the whole encoder.
      lora_rank: of the adapters.
      lora_alpha: the adapters are scaled by lora_alpha / lora_rank.
    """

    name: str = "bag"
    width: int = 128
    depth: int = 2
    heads: int = 4
    hidden: tuple[int, ...] = (128,)
    channels: tuple[int, ...] = (16, 32)
    bigrams: int = 0
    characters: int = 0
    slot_total: bool = False
    pooling: str = "mean"
    wide: bool = False
    cache_features: bool = False
    dropout: float = 0.0
    compute_dtype: str = "float32"
    checkpoint: str = ""
    remat: bool = False
    scan_layers: bool = False
    adapter: str = ""
    lora_rank: int = 16
    lora_alpha: float = 16.0

    def __post_init__(self):
        _validate.one_of("model.name", self.name, MODELS)
        for field in ("width", "depth", "heads"):
            _validate.integer_at_least(f"model.{field}", getattr(self, field), 1)
        if self.name == "transformer" and self.width % self.heads:
            bound = f"must divide model.width={self.width}"
            _validate.fail("model.heads", self.heads, bound, "choose a divisor")
        for field in ("hidden", "channels"):
            for width in getattr(self, field):
                _validate.integer_at_least(f"model.{field}", width, 1)
        cure = "0 uses single words only"
        _validate.integer_at_least("model.bigrams", self.bigrams, 0, cure)
        cure = "0 gives every word a vector of its own"
        _validate.integer_at_least("model.characters", self.characters, 0, cure)
        if self.characters and self.name != "gru":
            bound = f"has no effect on model.name={self.name!r}"
            _validate.fail("model.characters", self.characters, bound, "use 'gru'")
        _validate.one_of("model.pooling", self.pooling, POOLINGS)
        allowed = _POOLINGS_OF.get(self.name, POOLINGS)
        if self.pooling not in allowed:
            bound = f"does not go with model.name={self.name!r}"
            cure = f"choose one of {', '.join(allowed)}"
            _validate.fail("model.pooling", self.pooling, bound, cure)
        for field in ("wide", "cache_features"):
            if getattr(self, field) and self.name != "bert":
                bound = f"has no effect on model.name={self.name!r}"
                _validate.fail(f"model.{field}", True, bound, "set model.name='bert'")
        if self.cache_features and self.dropout:
            bound = "does not go with model.cache_features=True"
            _validate.fail("model.dropout", self.dropout, bound, "set it to 0")
        _validate.in_half_open_interval("model.dropout", self.dropout, 0, 1)
        if self.dropout and not self.hidden and self.name in ("mlp", "cnn"):
            bound = f"has no effect on model.name={self.name!r} without hidden layers"
            _validate.fail("model.dropout", self.dropout, bound, "set model.hidden")
        _validate.one_of("model.compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        _validate.integer_at_least("model.lora_rank", self.lora_rank, 1)
        _validate.positive("model.lora_alpha", self.lora_alpha, "16 is usual")
        if self.adapter:
            _validate.one_of("model.adapter", self.adapter, ADAPTERS, "'' has none")
            if self.name != "bert":
                bound = f"does not go with model.name={self.name!r}"
                _validate.fail("model.adapter", self.adapter, bound, "use 'bert'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """How it learns: an optax optimizer, applied after the noise.

    Attributes:
      name: one of `OPTIMIZERS`; 'adam_bc' is Adam without the noise's share of the
        second moment, for private runs with one noise throughout.
      learning_rate: the peak of the schedule.
      schedule: one of `SCHEDULES`; the last two end at 0.
      warmup_steps: steps of linear warm-up.
      weight_decay: decoupled weight decay, per step and unit of learning rate.
      momentum: of 'momentum', and b1 of the adaptive ones; in [0, 1).
      variance_floor: least second moment of 'adam_bc', as a share of the variance of
        the noise; > 0.
    """

    name: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    momentum: float = 0.9
    variance_floor: float = 0.01

    def __post_init__(self):
        _validate.one_of("optimizer.name", self.name, OPTIMIZERS)
        _validate.positive("optimizer.learning_rate", self.learning_rate, "try 1e-3")
        _validate.one_of("optimizer.schedule", self.schedule, SCHEDULES)
        _validate.integer_at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        _validate.non_negative("optimizer.weight_decay", self.weight_decay)
        _validate.in_half_open_interval("optimizer.momentum", self.momentum, 0, 1)
        cure = "0.01 is usual"
        _validate.positive("optimizer.variance_floor", self.variance_floor, cure)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """For how long, how much at once and where.

    Attributes:
      steps: number of updates.
      batch_size: examples per update: exact ('fixed_size', 'shuffled') or expected.
        Users where these are the `privacy.unit`, here and below.
      physical_batch_size: examples on the devices at once, at most `batch_size`, to
        which a larger number shrinks; 0 = about a quarter of `batch_size`.
      eval_every: steps between evaluations; 0 = only at the end.
      checkpoint_every: steps between checkpoints; 0 = only at the end.
      log_every: steps between rows of metrics.
      augmentation: '' or one of `AUGMENTATIONS`, of every example at every step: images
        are shifted by up to an eighth of their size (and mirrored), words lost with
        probability 0.1.
      augmentations: views of an example that its one gradient is the mean of.
      ema_decay: decay in [0, 1) of a moving average of the parameters, which is what
        is evaluated and returned; 0 = none.
      backend: one of `BACKENDS`.
      num_devices: devices used; 0 = all.
    """

    steps: int = 1000
    batch_size: int = 512
    physical_batch_size: int = 0
    eval_every: int = 0
    checkpoint_every: int = 100
    log_every: int = 10
    augmentation: str = ""
    augmentations: int = 1
    ema_decay: float = 0.0
    backend: str = "shard_map"
    num_devices: int = 0

    def __post_init__(self):
        for field, low in (("steps", 1), ("batch_size", 1), ("log_every", 1)):
            _validate.integer_at_least(f"train.{field}", getattr(self, field), low)
        for field in ("eval_every", "checkpoint_every"):
            cure = "0 means only at the end"
            _validate.integer_at_least(f"train.{field}", getattr(self, field), 0, cure)
        cure = "0 chooses it from train.batch_size"
        _validate.integer_at_least(
            "train.physical_batch_size", self.physical_batch_size, 0, cure
        )
        if self.augmentation:
            cure = "'' does without"
            field = "train.augmentation"
            _validate.one_of(field, self.augmentation, AUGMENTATIONS, cure)
        field, copies = "train.augmentations", self.augmentations
        _validate.integer_at_least(field, copies, 1, "1 takes a single view")
        if copies > 1 and not self.augmentation:
            bound = "makes equal views with train.augmentation=''"
            _validate.fail(field, copies, bound, "choose an augmentation, or 1")
        cure = "0 takes no average; 0.999 is usual"
        _validate.in_half_open_interval("train.ema_decay", self.ema_decay, 0, 1, cure)
        _validate.one_of("train.backend", self.backend, BACKENDS)
        _validate.integer_at_least("train.num_devices", self.num_devices, 0, "0 = all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSpec:
    """What experiment 'trust_report' compares.

    Attributes:
      epsilons: budgets trained at, beside the model without privacy.
      attack_examples: members (and as many non-members) attacked; 0 = all there are.
      shadow_models: models that an attacker trains as the audited one was, for each
        budget; even. 0 leaves the loss threshold as the only attack.
      audit_canaries: gradient canaries of an audit of the private trainer, one run
        more for each budget; 0 = no audit.
      seeds: how often each run is trained where data have groups of people, from
        `seed` on: what privacy costs a group is then a mean over all of them. Attacks
        and audits are of the first alone.
      level: of every confidence interval, in (0, 1).
      timing_rounds: how often experiment 'compare' times an epoch of each way.
    """

    epsilons: tuple[float, ...] = (1.0, 8.0)
    timing_rounds: int = 7
    attack_examples: int = 0
    shadow_models: int = 0
    audit_canaries: int = 0
    seeds: int = 1
    level: float = 0.95

    def __post_init__(self):
        for epsilon in self.epsilons:
            _validate.positive("report.epsilons", epsilon, "give positive budgets")
        if len(set(self.epsilons)) < len(self.epsilons):
            _validate.fail(
                "report.epsilons", self.epsilons, "repeats a budget", "name each once"
            )
        _validate.integer_at_least(
            "report.attack_examples", self.attack_examples, 0, "0 takes all there are"
        )
        cure = "0 attacks by the loss alone"
        count = self.shadow_models
        _validate.integer_at_least("report.shadow_models", count, 0, cure)
        if count % 2:
            bound = "must be even: models come in pairs, on complementary halves"
            _validate.fail("report.shadow_models", count, bound, f"take {count + 1}")
        check_canaries("report.audit_canaries", self.audit_canaries, "0 = no audit")
        cure = "1 trains each run once"
        _validate.integer_at_least("report.seeds", self.seeds, 1, cure)
        _validate.in_open_interval("report.level", self.level, 0, 1, "0.95 is usual")
        _validate.integer_at_least("report.timing_rounds", self.timing_rounds, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """The shadow models of experiment 'membership'; see `trustml.attacks`.

    Attributes:
      num_models: M, each of them a target as well; even for design 'paired'.
      design: one of `DESIGNS`, which model is trained on which examples.
      group_size: models trained at once on one device; 0 = found out at the start, by
        time on CPUs and by memory on accelerators.
      references: budgets of reference models that the attacks are measured with, beside
        all there are.
      learned_targets: targets that the attacks which train networks of their own
        (quantile regression, Shokri) are run on; 0 leaves them out.
      epsilons: budgets of privacy that are attacked beside models without privacy; ()
        attacks one set of models, private or not as `privacy` says.
    """

    num_models: int = 64
    design: str = "paired"
    group_size: int = 0
    references: tuple[int, ...] = (4, 16)
    learned_targets: int = 4
    epsilons: tuple[float, ...] = ()

    def __post_init__(self):
        cure = "64 is usual; every model needs one without its examples"
        _validate.integer_at_least("attack.num_models", self.num_models, 2, cure)
        _validate.one_of("attack.design", self.design, DESIGNS)
        if self.design == "paired" and self.num_models % 2:
            cure = f"take {self.num_models + 1}, or attack.design='independent'"
            bound = "must be even for attack.design='paired'"
            _validate.fail("attack.num_models", self.num_models, bound, cure)
        cure = "0 finds it out"
        _validate.integer_at_least("attack.group_size", self.group_size, 0, cure)
        for budget in self.references:
            _validate.integer_at_least("attack.references", budget, 2, "4 is few")
        cure = "0 leaves these attacks out"
        field = "attack.learned_targets"
        _validate.integer_at_least(field, self.learned_targets, 0, cure)
        for epsilon in self.epsilons:
            _validate.positive("attack.epsilons", epsilon, "give positive budgets")
        if len(set(self.epsilons)) < len(self.epsilons):
            bound = "repeats a budget"
            _validate.fail("attack.epsilons", self.epsilons, bound, "name each once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditSpec:
    """The canaries of experiment 'audit'; see `trustml.audit`.

    Attributes:
      canaries: examples whose clipped gradient is a coordinate of their own; each is in
        the training data by a fair coin.
      alpha: in (0, 1); each bound is above the true epsilon with this probability at
        most.
      epsilons: budgets at which the trainer is audited.
      sample_rate: q in [0, 1], with which an example is in a batch; 1 = full batches,
        where bounds come closest to the promise; 0 = that of `train.batch_size`.
    """

    canaries: int = 10_000
    alpha: float = 0.01
    epsilons: tuple[float, ...] = (1.0, 4.0, 10.0)
    sample_rate: float = 1.0

    def __post_init__(self):
        check_canaries("audit.canaries", self.canaries, "10000 are usual", least=1)
        cure = "0.01 is usual"
        _validate.in_open_interval("audit.alpha", self.alpha, 0, 1, cure)
        for epsilon in self.epsilons:
            _validate.positive("audit.epsilons", epsilon, "give positive budgets")
        if not self.epsilons or len(set(self.epsilons)) < len(self.epsilons):
            bound = "must name one budget or more, each once"
            _validate.fail("audit.epsilons", self.epsilons, bound, "try (1.0, 4.0)")
        _validate.non_negative("audit.sample_rate", self.sample_rate, "1 = full batch")
        if self.sample_rate > 1:
            bound = "must be at most 1"
            _validate.fail(
                "audit.sample_rate", self.sample_rate, bound, "a probability"
            )


def check_canaries(field: str, count: int, cure: str, least: int = 0) -> None:
    """Raises unless there are enough canaries for both sides to have some."""
    _validate.integer_at_least(field, count, least, cure)
    if 0 < count < 100:
        bound = "must be at least 100: a bound from fewer says next to nothing"
        _validate.fail(field, count, bound, cure)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineSpec:
    """How the run without privacy in a 'trust_report' differs; None: not at all.

    Settings that suit noise and clipping are not those that one would choose without
    them; a baseline held to them would understate the price of privacy.

    Attributes:
      learning_rate: in place of `optimizer.learning_rate`.
      steps: in place of `train.steps`.
      batch_size: in place of `train.batch_size`.
      dropout: in place of `model.dropout`.
    """

    learning_rate: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    dropout: float | None = None

    def __post_init__(self):
        cure = "None takes that of the private runs"
        if self.learning_rate is not None:
            _validate.positive("baseline.learning_rate", self.learning_rate, cure)
        for field in ("steps", "batch_size"):
            if getattr(self, field) is not None:
                value = getattr(self, field)
                _validate.integer_at_least(f"baseline.{field}", value, 1, cure)
        if self.dropout is not None:
            name = "baseline.dropout"
            _validate.in_half_open_interval(name, self.dropout, 0, 1, cure)
