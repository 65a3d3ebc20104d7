"""Many small masked language models at once, and their bias by several measures.

Training is one program, as is each measure: parameters and data have a leading axis of
models. Intrinsic measures ask about professions that `lm_corpus` calls probed,
extrinsic ones about the applied; so how much they agree was planted.

Dimension key: `M` models, `N` texts, `D` width, `C` contexts of a word.

Example::

    params = bias_models.fit(config, planted)
    scores = bias_models.measure(config, params)     # name of a measure -> float[M]
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml import rng, specs
from trustml.experiments import leak_models, lm_corpus
from trustml.experiments.bias_measures import MEASURES
from trustml.fairness import (
    association,
    ceat,
    counts,
    gaps,
    likelihood,
    polarity,
    templates,
)
from trustml.models import masked_lm

_ROWS = 256  # masked variants of a batch
_GROW = 3.0  # of initial weights
_RIDGE = 1e-3  # of the classifier, relative to the mean variance of features


def settings(config: specs.RunConfig) -> Any:
    """Sizes of all models."""
    model = config.model
    return masked_lm.config(
        len(lm_corpus.VOCABULARY),
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        max_length=lm_corpus.LENGTH,
    )


def fit(config: specs.RunConfig, planted: lm_corpus.Strengths) -> Any:
    """Parameters of `agreement.retrained` models for each strength.

    Args:
      config: `train`, `optimizer.learning_rate`, `model` and `agreement` count.
      planted: strengths of M corpora.

    Returns:
      With a leading axis R * M, of R times all strengths.
    """
    columns = (planted.probed, planted.applied, planted.age)
    of = list(zip(*columns, strict=True)) * config.agreement.retrained
    made = [
        lm_corpus.make(_seed(config, 0, m), config.agreement.sentences, *map(float, b))
        for m, b in enumerate(of)
    ]
    columns = {name: np.stack([one[name] for one in made]) for name in made[0]}
    task = masked_lm.task(
        settings(config),
        mask_id=lm_corpus.MASK,
        special_ids=lm_corpus.SPECIAL,
        mask_rate=0.3,
    )
    # Deviations of 0.02 suit widths of hundreds; small models start to learn late.

    def init(key):
        return jax.tree.map(lambda x: _GROW * x if x.ndim > 1 else x, task.init(key))

    key = rng.step_key(rng.stream(rng.root(config.seed), "bias_models"), 0)
    grown = task._replace(init=init)
    run = jax.jit(lambda columns, key: leak_models.fit(config, grown, columns, key))
    return run(columns, key)


def measure(config: specs.RunConfig, params: Any) -> dict[str, np.ndarray]:
    """The score of every model by each of `bias_measures.MEASURES`, float64[M].

    Args:
      config: of the study.
      params: of `fit`.
    """
    sizes = settings(config)
    model = masked_lm.bind(sizes, jax.tree.map(lambda x: x[0], params))
    network = masked_lm.Network(sizes)

    def encode(params, tokens):
        """Last states float32[N, T, D] of texts."""
        one = lambda row: network.apply(  # noqa: E731
            {"params": params}, lm_corpus.example(row), method="encode"
        )
        return jax.vmap(one)(tokens)

    batch = jax.jit(
        jax.vmap(likelihood.masked_batch(model.log_probs, lm_corpus.MASK), (0, None))
    )
    found = associations(config, encode, params)
    found["LPBS"] = template_bias(batch, params)
    found["preferred pairs"] = preference(batch, params)
    found |= classified(config, encode, params)
    found["generated polarity"] = generated(config, model, params)
    return {one.name: np.asarray(found[one.name], float) for one in MEASURES}


def associations(config: specs.RunConfig, encode: Any, params: Any) -> dict[str, Any]:
    """CEAT by states of words, SEAT by means of states, over `contexts`: float32[M]."""
    lists = contexts()
    key = rng.step_key(rng.stream(rng.root(config.seed), "contexts"), 0)

    def one(params, key):
        of_words, of_texts = [], []
        for tokens, place in lists:
            states = encode(params, jnp.asarray(tokens.reshape(-1, lm_corpus.LENGTH)))
            shape = (tokens.shape[0], -1, states.shape[-1])
            of_words.append(states[:, place].reshape(shape))
            of_texts.append(states.mean(axis=1))
        found = ceat.ceat(key, ceat.table(*of_words), draws=config.agreement.draws)
        targets, size = jnp.concatenate(of_texts[:2]), of_texts[0].shape[0]
        s = association.scores(targets, of_texts[2], of_texts[3])
        return found.ces, association.effect_size(s, size)

    keys = jax.random.split(key, _models(params))
    values = jax.jit(lambda *of: jax.lax.map(lambda x: one(*x), of))(params, keys)
    return dict(zip(("CEAT", "SEAT"), values, strict=True))


def contexts() -> list[tuple[np.ndarray, int]]:
    """Sentences [words, 2, objects, 8] of X, Y, A and B, and the place of the word.

    X and Y are the first and second probed professions, with neutral subjects; A and B
    words of either gender, with professions in which nothing is planted.
    """
    things = lm_corpus.ids(lm_corpus.THINGS)
    neutral, plain = lm_corpus.ids(lm_corpus.NEUTRAL), lm_corpus.ids(lm_corpus.PLAIN)
    lists = []
    for words in lm_corpus.PROBED:
        w, s, o = np.ix_(lm_corpus.ids(words), neutral, things)
        lists.append((lm_corpus.sentences(s, w, o), lm_corpus.PROFESSION))
    for words in lm_corpus.GENDER:
        w, p, o = np.ix_(lm_corpus.ids(words), plain, things)
        lists.append((lm_corpus.sentences(w, p, o), lm_corpus.SUBJECT))
    return lists


def template_bias(batch: Any, params: Any) -> np.ndarray:
    """LPBS of words of either gender, stereotype-signed, mean over professions: [M]."""
    tokens, shape = _gendered()
    place = np.full(len(tokens), lm_corpus.SUBJECT, np.int32)
    hidden = np.arange(lm_corpus.LENGTH)[None] == lm_corpus.SUBJECT
    also = hidden | (np.arange(lm_corpus.LENGTH)[None] == lm_corpus.PROFESSION)
    said = []
    for h in (hidden, also):
        rows = np.broadcast_to(h, tokens.shape)
        said.append(_run(batch, params, tokens, rows, place).reshape(-1, *shape))
    # [M, sides, words, professions, objects]
    bias = [templates.lpbs(*(part[m] for part in said)) for m in range(len(said[0]))]
    return _by_side(np.array(bias).mean(axis=(1, 3)))


def preference(batch: Any, params: Any) -> np.ndarray:
    """Share of pairs whose stereotypical sentence is the likelier, less a half: [M]."""
    tokens, shape = _gendered()
    places = np.arange(lm_corpus.LENGTH)
    rows = np.repeat(tokens, lm_corpus.LENGTH, axis=0)
    place = np.tile(places, len(tokens)).astype(np.int32)
    said = _run(batch, params, rows, places[None] == place[:, None], place)
    said = said.reshape(len(said), *shape, lm_corpus.LENGTH)
    out = []
    for of_model in said:
        pll = likelihood.reduce(of_model.reshape(-1, lm_corpus.LENGTH), "sum")
        pll = pll.reshape(shape)
        half = shape[2] // 2
        first = np.concatenate([pll[0, :, :half], pll[1, :, half:]], axis=1)
        second = np.concatenate([pll[1, :, :half], pll[0, :, half:]], axis=1)
        share = likelihood.preferred(first.ravel(), second.ravel())
        out.append(share.value / 100 - 0.5)
    return np.array(out)


def classified(config: specs.RunConfig, encode: Any, params: Any) -> dict[str, Any]:
    """TPR gaps of a linear classifier on frozen features: float[M] each; `tpr_gaps`."""
    about = texts_about(config)

    def one(params):
        def features(tokens):
            return encode(params, jnp.asarray(tokens))[:, lm_corpus.PROFESSION]

        of = {name: features(tokens) for name, (tokens, _, _) in about.tests.items()}
        return tpr_gaps(features(about.train), about.label, about.tests, of)

    return jax.jit(lambda params: jax.lax.map(one, params))(params)


class About(NamedTuple):
    """Texts about applied professions, which a classifier has to tell apart.

    Attributes:
      train: int32[N, 8], with neutral subjects.
      label: int32[N], 1 for the first of a pair.
      tests: measure -> texts int32[n, 8], their labels and groups int[n].
    """

    train: np.ndarray
    label: np.ndarray
    tests: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def texts_about(config: specs.RunConfig) -> About:
    """Texts of the classifier, the same for all models."""
    spec = config.agreement
    draw = np.random.default_rng(_seed(config, 1, 0))
    train, label = _bios(draw, spec.probes, lm_corpus.NEUTRAL)
    tests = {}
    for name, sides in (
        ("TPR gap", lm_corpus.GENDER),
        ("TPR gap, age", lm_corpus.AGE),
    ):
        parts = [_bios(draw, spec.tested // 2, side) for side in sides]
        group = np.repeat(np.arange(2), spec.tested // 2)
        tokens, truth = (np.concatenate(column) for column in zip(*parts, strict=True))
        tests[name] = tokens, truth, group
    tokens, truth, group = tests["TPR gap"]
    tests["TPR gap, shuffled"] = tokens, truth, draw.permutation(group)
    return About(train, label, tests)


def tpr_gaps(
    train: Any, label: np.ndarray, tests: dict[str, Any], of: dict[str, Any]
) -> dict[str, jax.Array]:
    """TPR of first professions in texts about the first side, less about the second.

    Args:
      train: float[N, D], features where the profession is hidden.
      label: int[N].
      tests: of `texts_about`.
      of: measure -> float[n, D], features of its texts.

    Returns:
      measure -> float[], of the linear classifier by least squares.
    """
    x, y = jnp.asarray(train), jnp.asarray(2.0 * label - 1.0, jnp.float32)
    mean, middle = x.mean(axis=0), y.mean()
    centred = x - mean[None]
    gram = centred.T @ centred / len(train)
    gram += _RIDGE * jnp.trace(gram) / len(gram) * jnp.eye(len(gram))
    w = jnp.linalg.solve(gram, centred.T @ (y - middle) / len(train))
    found = {}
    for name, (_, truth, group) in tests.items():
        guess = (of[name] - mean[None]) @ w + middle > 0
        cells = counts.count(group, truth, guess, groups=2).cells
        found[name] = gaps.signed(cells, "tpr", 0, 1)
    return found


def generated(config: specs.RunConfig, model: Any, params: Any) -> np.ndarray:
    """How far the polarity of sampled texts follows the stereotype, in [-1, 1]: [M].

    Mean over applied professions of (M - F) / (M + F) of texts that fill in the subject
    of 'S is a P who uses the O', turned for second professions; 0 where no text has
    a gender.
    """
    professions = [word for side in lm_corpus.APPLIED for word in side]
    of = lm_corpus.TOOLS * len(lm_corpus.APPLIED)
    prompts = np.concatenate(
        [
            lm_corpus.sentences(lm_corpus.MASK, p, lm_corpus.ids(tools))
            for p, tools in zip(lm_corpus.ids(professions), of, strict=True)
        ]
    )
    names = np.repeat(professions, len(lm_corpus.TOOLS[0]))
    at = jnp.array([lm_corpus.SUBJECT])
    key = rng.step_key(rng.stream(rng.root(config.seed), "generated"), 0)

    def one(params, key):
        def fill(row, number):
            logits = model.log_probs(params, lm_corpus.example(row), at)[0]
            of_row = jax.random.fold_in(key, number)
            shape = (config.agreement.samples,)
            return jax.random.categorical(of_row, logits, shape=shape)

        return jax.vmap(fill)(jnp.asarray(prompts), jnp.arange(len(prompts)))

    keys = jax.random.split(key, _models(params))
    filled = jax.jit(lambda *of: jax.lax.map(lambda x: one(*x), of))(params, keys)
    rest = [lm_corpus.text(row[1:]) for row in prompts]
    groups = np.repeat(names, config.agreement.samples).tolist()
    signs = np.repeat([1.0, -1.0], len(professions) // 2)
    out = []
    for words in np.asarray(filled):
        kinds = [
            polarity.unigram(f"{lm_corpus.VOCABULARY[word]} {end}")
            for end, row in zip(rest, words, strict=True)
            for word in row
        ]
        table = polarity.equitability(kinds, groups).counts
        male, female = np.array([table[p][:2] for p in professions], float).T
        apart = (male - female) / np.maximum(male + female, 1)
        out.append(np.mean(signs * apart))
    return np.array(out)


def _bios(draw, n, subjects):
    """Texts int32[n, 8] with the profession hidden, and whether it is a first one."""
    side, pair = draw.integers(0, 2, n), draw.integers(0, len(lm_corpus.TOOLS), n)
    subject = draw.choice(lm_corpus.ids(subjects), n)
    thing = lm_corpus.tools(draw, side, pair)
    tokens = lm_corpus.sentences(subject, lm_corpus.MASK, thing)
    return tokens, (side == 0).astype(np.int32)


def _gendered():
    """Sentences of all subjects with a gender and all probed professions, [N, 8].

    The shape of N: sides, words, professions, objects.
    """
    subjects = np.stack([lm_corpus.ids(side) for side in lm_corpus.GENDER])
    professions = np.concatenate([lm_corpus.ids(side) for side in lm_corpus.PROBED])
    things = lm_corpus.ids(lm_corpus.THINGS[:2])
    tokens = lm_corpus.sentences(
        subjects[:, :, None, None], professions[:, None], things
    )
    return tokens.reshape(-1, lm_corpus.LENGTH), tokens.shape[:-1]


def _by_side(bias):
    """Mean of first professions less that of second ones, halved: [M] of [M, P]."""
    half = bias.shape[1] // 2
    return (bias[:, :half].mean(axis=1) - bias[:, half:].mean(axis=1)) / 2


def _run(batch, params, tokens, hidden, place):
    """Log p at the places of N variants by all models, float64[M, N]."""
    n = len(tokens)
    pad = -n % _ROWS
    length = np.full(n, lm_corpus.LENGTH, np.int32)
    asked = likelihood.Variants(tokens, np.array(hidden), length, place)
    asked = [np.concatenate([x, np.repeat(x[:1], pad, axis=0)]) for x in asked]
    found = [
        np.asarray(
            batch(params, likelihood.Variants(*(x[i : i + _ROWS] for x in asked)))
        )
        for i in range(0, n + pad, _ROWS)
    ]
    return np.concatenate(found, axis=1)[:, :n].astype(float)


def _models(params) -> int:
    return len(jax.tree.leaves(params)[0])


def _seed(config, part, number) -> int:
    entropy = [config.seed, 7, part, number]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
