"""From the config to the pieces of a run: data, task, optimizer, clipper, plan.

Example::

    data = build.dataset(config)
    task = build.task(config, data)
    plan = build.plan(config, clipper, sampler, epsilon=8.0)
"""

import functools
import hashlib
import math
import os
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import optax
import rich.console
import rich.progress

from trustml import _validate, parallel, rng, specs
from trustml.data import (
    augment,
    batches,
    datasets,
    files,
    speakers,
    spelling,
    tokenizers,
)
from trustml.experiments import units
from trustml.models import (
    adapters,
    bag,
    bert,
    bilstm,
    cnn,
    gru,
    hf,
    language_model,
    logistic,
    mlp,
    reader,
    seq2seq,
    transformer,
)
from trustml.privacy import (
    accounting,
    adam,
    clipping,
    correlated_noise,
    edp_sgd,
    rules,
    sampling,
    schedules,
    users,
)
from trustml.privacy import plan as plan_lib
from trustml.privacy import trainable as trainable_lib
from trustml.task import Task

_ENCODED = 64  # texts encoded at once
_OF_PAIRS = {"reader": "span", "seq2seq": "seq2seq"}  # model -> kind of data


def dataset(config: specs.RunConfig) -> datasets.Dataset:
    """The data set that the config names, or the user's own file.

    Raises:
      ValueError: for a malformed file or option, with the line or the field.
      FileNotFoundError: with the file and the place it was looked for.
    """
    spec = config.data
    if spec.name == speakers.NAME:
        made = speakers.load(
            max_length=spec.max_length, limit=spec.limit, seed=config.seed
        )
        return _whole(made, f"data.name={spec.name!r}")
    text = {
        "max_length": spec.max_length,
        "vocabulary": spec.vocabulary,
        "vocabulary_size": spec.vocabulary_size,
        "pretrained_dir": _pretrained(config)
        if spec.vocabulary == "pretrained"
        else "",
        "limit": spec.limit,
        "seed": config.seed,
    }
    if spec.name != "file":
        made = datasets.load(spec.name, second_length=spec.second_length, **text)
        return _whole(made, f"data.name={spec.name!r}")
    made = files.load(
        spec.path,
        valid_path=spec.valid_path,
        test_path=spec.test_path,
        text_column=spec.text_column,
        label_column=spec.label_column,
        tokens_column=spec.tokens_column,
        slots_column=spec.slots_column,
        feature_columns=spec.feature_columns,
        user_column=spec.user_column,
        valid_fraction=spec.valid_fraction,
        **text,
    )
    return _whole(made, f"data.path={spec.path!r}")


def data_files(config: specs.RunConfig) -> str:
    """The user's own files in words: "data.path='a.tsv' or data.test_path='b.tsv'"."""
    fields = ("path", "valid_path", "test_path")
    named = [(field, getattr(config.data, field)) for field in fields]
    return " or ".join(f"data.{field}={path!r}" for field, path in named if path)


def encoded(config: specs.RunConfig, data: datasets.Dataset) -> datasets.Dataset:
    """`data` with the features of a frozen encoder, where the config keeps them.

    Every text passes through the encoder once, instead of at every step that draws it:
    a minute or two for ten thousand texts on two cores, shown as it goes.
    """
    if not config.model.cache_features:
        return data
    spec = config.model
    encoder = bert.encoder(
        _pretrained(config), pooling=spec.pooling, compute_dtype=spec.compute_dtype
    )
    run = jax.jit(jax.vmap(encoder.pooled, (None, 0)))
    splits = {name: getattr(data, name) for name in ("train", "valid", "test")}
    total = sum(math.ceil(batches.size(x) / _ENCODED) for x in splits.values())
    console = rich.console.Console(file=sys.stdout)
    with rich.progress.Progress(
        console=console, disable=not console.is_terminal
    ) as bar:
        line = bar.add_task("encoding texts", total=total)
        if not console.is_terminal:
            print("encoding texts ...")
        kept = {}
        for name, columns in splits.items():
            parts = []
            for batch, mask in batches.evaluation(columns, _ENCODED):
                parts.append(np.asarray(run(encoder.params, batch))[mask])
                bar.advance(line)
            kept[name] = columns | {bert.KEPT: np.concatenate(parts)}
    # Another encoder makes other data of the same texts: a run does not go on with it.
    weights = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(encoder.params):
        weights.update(np.asarray(leaf).tobytes())
    digest = f"{data.digest}+{weights.hexdigest()}"
    return data._replace(**kept, digest=digest)


def _whole(data: datasets.Dataset, where: str) -> datasets.Dataset:
    """`data`, if every split has examples, as a report needs."""
    for split in ("valid", "test"):
        if not len(getattr(data, split)["label"]):
            raise ValueError(
                f"{where} has no {split} examples to report on; give more rows, set "
                f"data.{split}_path or raise data.valid_fraction."
            )
    return data


def _pretrained(config: specs.RunConfig) -> str:
    return config.model.checkpoint or str(hf.find_minilm())


def task(config: specs.RunConfig, data: datasets.Dataset) -> Task:
    """The model that the config names, sized for the data.

    Raises:
      ValueError: if the model does not take this kind of data.
    """
    spec = config.model
    classes = len(data.label_names)
    shape = {name: column.shape[1:] for name, column in data.train.items()}
    needs = {"mlp": "features", "cnn": "image"}.get(spec.name, "tokens")
    if needs not in shape:
        raise ValueError(
            f"model.name={spec.name!r} needs data with '{needs}', and "
            f"data.name={data.name!r} has {sorted(shape)}; choose another model."
        )
    fits = {"tagging": ("gru",), "span": ("reader",), "seq2seq": ("seq2seq",)}
    known = fits.get(data.kind)
    if known and spec.name not in known or not known and spec.name in _OF_PAIRS:
        raise ValueError(
            f"model.name={spec.name!r} does not do what data.name={data.name!r} asks "
            f"({data.kind}); choose {' or '.join(known or ('bag',))}."
        )
    if data.kind in _OF_PAIRS.values():
        make = {"reader": reader.task, "seq2seq": seq2seq.task}[spec.name]
        return make(
            data.vocab_size, width=spec.width, hidden=spec.width, dropout=spec.dropout
        )
    if spec.name == "mlp":
        return mlp.task(
            shape["features"][0], classes, hidden=spec.hidden, dropout=spec.dropout
        )
    if spec.name == "cnn":
        return cnn.task(
            shape["image"],
            classes,
            channels=spec.channels,
            hidden=spec.hidden,
            dropout=spec.dropout,
        )
    if spec.name == "language_model":
        return language_model.task(
            data.vocab_size,
            width=spec.width,
            hidden=spec.hidden[0] if spec.hidden else spec.width,
            dropout=spec.dropout,
        )
    if spec.name == "logistic":
        return logistic.task(data.vocab_size, classes)
    if spec.name == "bag":
        return bag.task(
            data.vocab_size,
            classes,
            width=spec.width,
            hidden=spec.hidden,
            bigrams=spec.bigrams,
            pooling=spec.pooling,
            dropout=spec.dropout,
        )
    if spec.name in ("bilstm", "gru") and "slots" not in shape:
        raise ValueError(
            f"model.name={spec.name!r} needs data with slots, and data.name="
            f"{data.name!r} has none; choose snips, atis, nlu_eval or another model."
        )
    if spec.name == "gru":
        return gru.task(
            data.vocab_size,
            0 if data.kind == "tagging" else classes,
            len(data.slot_names),
            width=spec.width,
            hidden=spec.width,
            dropout=spec.dropout,
            slot_total=spec.slot_total,
            spelling=_spelling(config, data),
        )
    if spec.name == "bilstm":
        return bilstm.task(
            data.vocab_size,
            classes,
            len(data.slot_names),
            width=spec.width,
            hidden=spec.width,
            depth=spec.depth,
            dropout=spec.dropout,
        )
    shared = {
        "max_length": config.data.max_length,
        "pooling": spec.pooling,
        "dropout": spec.dropout,
        "compute_dtype": spec.compute_dtype,
        "remat": spec.remat,
    }
    if spec.name == "bert":
        if config.data.vocabulary != "pretrained":
            raise ValueError(
                f"data.vocabulary={config.data.vocabulary!r} does not go with "
                "model.name='bert', whose embeddings belong to its own tokenizer; set "
                "data.vocabulary='pretrained'."
            )
        rank = spec.lora_rank if spec.adapter == "lora" else 0
        return bert.classifier(
            _pretrained(config),
            classes,
            wide=spec.wide,
            lora_rank=rank,
            lora_alpha=spec.lora_alpha,
            **shared,
        )
    return transformer.classifier(
        data.vocab_size,
        classes,
        width=spec.width,
        depth=spec.depth,
        heads=spec.heads,
        scan_layers=spec.scan_layers,
        **shared,
    )


def _spelling(config: specs.RunConfig, data: datasets.Dataset) -> np.ndarray | None:
    """N-grams of the data's words, and of the canary's, which need not be among them.

    Of training texts too: the table tells which words occur.
    """
    if not config.model.characters or data.tokenizer is None:
        return None
    if config.data.vocabulary == "pretrained":
        bound = "cuts words, and model.characters spells whole ones"
        _validate.fail("data.vocabulary", "pretrained", bound, "use 'hashed'")
    words = set(config.canary.words) | set(config.canary.alphabet)
    for texts in data.texts.values():
        for text in texts:
            words.update(
                tokenizers.split_words(text) if isinstance(text, str) else text
            )
    return spelling.table(data.tokenizer, words, buckets=config.model.characters)


def trainable(config: specs.RunConfig) -> tuple[str, ...] | None:
    """Globs of the leaves to train: the config's, its adapter's, or None for all."""
    return config.privacy.trainable or adapters.TRAINABLE.get(config.model.adapter)


def loss(config: specs.RunConfig, data: datasets.Dataset, task: Task):
    """The task's loss, over augmented views of the example where the config asks.

    Raises:
      ValueError: if the augmentation does not go with this kind of data.
    """
    name = config.train.augmentation
    if not name:
        return task.loss
    column = "tokens" if name == "word_dropout" else "image"
    if column not in data.train:
        raise ValueError(
            f"train.augmentation={name!r} needs data with '{column}', and "
            f"data.name={data.name!r} has {sorted(data.train)}; choose another."
        )
    if name == "word_dropout":
        made = augment.word_dropout(0.1)
    else:
        height = data.train["image"].shape[1]
        made = augment.shift(max(1, height // 8), flip=name == "shift_flip")
    return augment.average(task.loss, made, config.train.augmentations)


def learning_rate(config: specs.RunConfig) -> optax.Schedule:
    """Step -> learning rate, of the config's schedule."""
    spec, steps = config.optimizer, config.train.steps
    after = max(1, steps - spec.warmup_steps)
    rate = {
        "constant": lambda: optax.constant_schedule(spec.learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(spec.learning_rate, after),
        "linear": lambda: optax.linear_schedule(spec.learning_rate, 0.0, after),
    }[spec.schedule]()
    if spec.warmup_steps:
        warmup = optax.linear_schedule(0.0, spec.learning_rate, spec.warmup_steps)
        rate = optax.join_schedules([warmup, rate], [spec.warmup_steps])
    return rate


def optimizer(
    config: specs.RunConfig, noise_variance: float | None = None
) -> optax.GradientTransformation:
    """The optax optimizer with its schedule.

    Args:
      config: of the run.
      noise_variance: of the mean gradient, which 'adam_bc' needs.
    """
    spec, rate = config.optimizer, learning_rate(config)
    b1, decay = spec.momentum, spec.weight_decay
    made = {
        "sgd": lambda: optax.sgd(rate),
        "momentum": lambda: optax.sgd(rate, momentum=b1),
        "adam": lambda: optax.adam(rate, b1=b1),
        "adam_bc": lambda: _adam_bc(spec, rate, noise_variance),
        "adamw": lambda: optax.adamw(rate, b1=b1, weight_decay=decay),
        "lamb": lambda: optax.lamb(rate, b1=b1, weight_decay=decay),
        "lion": lambda: optax.lion(rate, b1=b1, weight_decay=decay),
        "adagrad": lambda: optax.adagrad(rate),
        "rmsprop": lambda: optax.rmsprop(rate, momentum=b1),
    }[spec.name]()
    if decay and spec.name not in ("adamw", "lamb", "lion"):
        raise ValueError(
            f"optimizer.weight_decay={decay} has no effect with "
            f"optimizer.name={spec.name!r}; choose adamw, lamb or lion."
        )
    return made


def _adam_bc(spec: specs.OptimizerSpec, rate, noise_variance: float | None):
    if noise_variance is None:
        raise ValueError(
            "optimizer.name='adam_bc' needs the variance of the noise, and this run "
            "adds none; choose adam."
        )
    return adam.dp_adam_bc(
        rate,
        b1=spec.momentum,
        noise_variance=noise_variance,
        floor=spec.variance_floor,
    )


def physical_batch_size(config: specs.RunConfig, num_devices: int) -> int:
    """Examples on one device at once.

    All devices together hold `train.physical_batch_size`, or about a quarter of the
    batch where that is 0, and never more than the batch, dealt to the devices.
    """
    batch = config.train.batch_size
    quarter = max(16, 2 ** round(math.log2(max(1, batch / 4))))
    wanted = config.train.physical_batch_size or quarter
    return max(1, min(wanted // num_devices, math.ceil(batch / num_devices)))


def clipper(
    config: specs.RunConfig, loss
) -> clipping.ClippedGrad | edp_sgd.MicroBatchGrad:
    """The clipped gradient of the config's privacy section; `loss` is of an example."""
    spec = config.privacy
    rule: Any = spec.rule
    if spec.rule == "quantile":
        rule = rules.quantile(spec.clip_quantile)
    if spec.group_size:
        return edp_sgd.clipped_grad(
            loss,
            l2_clip_norm=spec.l2_clip_norm,
            group_size=spec.group_size,
            rule=rule,
            trainable=trainable(config),
        )
    make: Any = clipping.clipped_grad
    if units.are_users(config):
        make = users.clipped_grad
    return make(
        loss,
        l2_clip_norm=spec.l2_clip_norm,
        rule=rule,
        method=spec.method,
        microbatch_size=spec.microbatch_size or None,
        trainable=trainable(config),
    )


def root(config: specs.RunConfig) -> rng.Root:
    """Where noise and batches come from: secret under privacy, unless asked otherwise.

    A run that promises nothing has no secret: `config.seed` fixes it as a whole, but
    for a `privacy.noise_seed` that is given.
    """
    known = config.privacy.noise_seed
    if known is None and not config.privacy.enabled:
        known = config.seed
    return rng.root(known)


def sampler(
    config: specs.RunConfig, num_units: int, num_devices: int, root: rng.Root
) -> sampling.Sampler:
    """The sampler of the config, with a seed of its own stream of `root`."""
    make: Any = {
        "poisson": sampling.poisson,
        "fixed_size": sampling.fixed_size,
        "shuffled": sampling.shuffled,
        "truncated_poisson": sampling.truncated_poisson,
        "balls_in_bins": sampling.balls_in_bins,
    }[config.privacy.sampler]
    if config.privacy.enabled and config.privacy.group_size:
        size = config.privacy.group_size
        make = functools.partial(edp_sgd.micro_batches, group_size=size)
    if config.privacy.enabled and config.privacy.bands > 1:
        make = functools.partial(sampling.cyclic_poisson, bands=config.privacy.bands)
    made = make(
        num_units,
        config.train.batch_size,
        physical_batch_size=physical_batch_size(config, num_devices),
        shards=num_devices,
        seed=None,
    )
    if units.are_users(config):
        made = users.sampler(made)
    seed = rng.seed_128(rng.stream(root, "sampling"))
    return made.reseed(seed, secret=bool(root.secret))


def plan(
    config: specs.RunConfig,
    clipped: clipping.ClippedGrad | edp_sgd.MicroBatchGrad,
    sampled: sampling.Sampler,
    params: Any = None,
) -> plan_lib.Plan:
    """The plan that joins clipper, sampler and noise, calibrated where asked."""
    spec = config.privacy
    return plan_lib.make(
        clipped,
        sampled,
        steps=config.train.steps,
        delta=spec.delta,
        relation=accounting.relation(spec.relation),
        noise_multiplier=spec.noise_multiplier,
        epsilon=spec.epsilon,
        noise_schedule=_noise_schedule(config, sampled),
        strategy=_strategy(config),
        grid_bits=spec.grid_bits or None,
        accountant=spec.accountant,
        params=params,
        cache_dir=_cache_dir(),
    )


def _strategy(config: specs.RunConfig) -> correlated_noise.Strategy | None:
    """How noise is correlated over steps; what is best for the optimizer's momentum."""
    if config.privacy.bands == 1:
        return None
    uses = config.optimizer.name == "momentum"
    return correlated_noise.optimize(
        config.train.steps,
        config.privacy.bands,
        momentum=config.optimizer.momentum if uses else 0.0,
    )


def _noise_schedule(config: specs.RunConfig, sampled: sampling.Sampler):
    """Relative noise of every step; None where it stays."""
    spec, steps = config.privacy, config.train.steps
    per_epoch = max(1, round(1 / sampled.sample_rate))
    rho = spec.noise_decay
    return {
        "constant": lambda: None,
        "exponential": lambda: schedules.exponential(steps, per_epoch, rho=rho),
        "inverse": lambda: schedules.inverse(steps, per_epoch, rho=rho),
        "stairs": lambda: schedules.stairs(steps, per_epoch, rho=rho, every=5),
    }[spec.noise_schedule]()


def noise_variance(config: specs.RunConfig, made: plan_lib.Plan) -> float | None:
    """What `optimizer` needs to know of the plan's noise; None where nothing."""
    wanted = config.optimizer.name == "adam_bc"
    return adam.noise_variance(made) if wanted else None


def check(config: specs.RunConfig, data: datasets.Dataset, task: Task) -> None:
    """Raises what would stop the run later, before anything is trained."""
    num_devices = len(parallel.devices(config.train.num_devices))
    size = units.count(config, data)
    sampled = sampler(config, size, num_devices, root(config))
    variance = None
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    trainable_lib.partition(shapes, trainable(config))
    if config.privacy.enabled:
        clipped = clipper(config, loss(config, data, task))
        variance = noise_variance(config, plan(config, clipped, sampled, shapes))
    optimizer(config, variance)


def checked(
    config: specs.RunConfig, variants: Iterable[specs.RunConfig]
) -> datasets.Dataset:
    """The data of an experiment, once nothing would stop any of its runs later.

    With the features of a frozen encoder, where the config keeps them.
    """
    data = dataset(config)
    check_batch_sizes(config, units.count(config, data))
    for variant in variants:  # the last budget may be out of reach
        check(variant, data, task(variant, data))
    return encoded(config, data)


def check_batch_sizes(config: specs.RunConfig, num_units: int) -> None:
    """Raises one sentence for all batches that are larger than the training data."""
    sizes = {"train.batch_size": config.train.batch_size}
    if config.experiment == "trust_report":
        sizes["baseline.batch_size"] = config.baseline.batch_size or 0
    large = {field: size for field, size in sizes.items() if size > num_units}
    if not large:
        return
    buffers = config.train.physical_batch_size
    follows = f" (train.physical_batch_size={buffers} follows by itself)"
    raise ValueError(
        f"{' and '.join(f'{field}={size}' for field, size in large.items())} must be "
        f"at most the {num_units} training {config.privacy.unit}s there are; lower "
        f"{' and '.join(large)}{follows if buffers > num_units else ''}."
    )


def _cache_dir() -> pathlib.Path:
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = os.environ.get("TRUSTML_CACHE") or f"{caches}/trustml"
    return pathlib.Path(os.path.expanduser(named)) / "plans"
