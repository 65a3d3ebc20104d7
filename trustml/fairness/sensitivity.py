"""Accumulated prediction sensitivity: how far protected directions move a prediction.

    P = w^T |J| v,   J_ki = d f_k / d E_i

f is a classifier as a function of its embeddings E, w weighs its classes, and v >= 0
says how much each input reveals of a protected status: `directions` takes it from the
gradient of a second model, the protected status model (PSM), so that no protected label
is needed where P is measured. Nothing here forms J: a one-hot w is one VJP, a signed
form one JVP, a dense w a VJP for each class, a few at a time.

| form | P | token t |
|---|---|---|
| 'abs' | sum_k w_k sum_i |J_ki| v_i | sum over its coordinates |
| 'signed' | w . (J v) | the same |
| 'integrated' | sum_t |A_t| v_t | |A_t| v_t |
| 'displacement' | |f(E) - f(E')|_1 / 2 | - |

E'_t = E_t + min(1, v_t / max v) (b - E_t) moves what reveals to a baseline b.
A_t = sum_d (E - b)_td int_0^1 d f_w / d E_td (b + s (E - b)) ds, midpoint rule, with
b = E at what is no word, such as [CLS], so sum_t A_t = f_w(E) - f_w(b). `share` is
P / sum_t |A_t| (or / sum_t |J_t|), free of the scale of the model.

Read 'abs' with care. It saturates: where a classifier is certain its gradient vanishes,
so P falls to 0 exactly where a leak is strongest (`configs/prediction_sensitivity.py`
shows it). In a model that averages its embeddings every token has the same gradient,
and v cancels. And P scales with embeddings and temperature: between models compare
`share`, or 'displacement'.

Source: the idea of Krishna et al. 2022, https://arxiv.org/abs/2203.08670, whose details
(normalisation, choice of w) are options here; forerunner Maughan and Near 2022,
https://arxiv.org/abs/2202.04504; path integrals Sundararajan et al. 2017,
https://arxiv.org/abs/1703.01365. Dimension key: `T` tokens, `D` width, `K` classes.

Example::

    v = sensitivity.directions(status_task)            # of one example
    measure = sensitivity.prediction_sensitivity(task, form='integrated')

    def one(example, words):                           # words: bool[T], no padding
        return measure(params, example, v(status_params, example, words), words, b)

    found = jax.jit(jax.vmap(one))(examples, words)
    found.value, found.share, found.tokens             # [B], [B], [B, T]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trustml import _validate
from trustml import task as task_lib

FORMS = ("abs", "signed", "integrated", "displacement")
OUTPUTS = ("prob", "log_prob", "margin")
WEIGHTS = ("predicted", "target", "uniform")
NORMS = ("l1", "l2", "none")


class Sensitivity(NamedTuple):
    """Of one example.

    Attributes:
      value: P, float[].
      share: P over what it would be with v = 1 on every word; float[], NaN where
        nothing moves the prediction, or the form has none ('signed', 'displacement').
      tokens: float[T], parts of `value`, 0 at what is no word; zeros for
        'displacement'.
    """

    value: jax.Array
    share: jax.Array
    tokens: jax.Array


def prediction_sensitivity(
    task: task_lib.Task,
    *,
    form: str = "abs",
    w: str = "predicted",
    output: str = "prob",
    temperature: float = 1.0,
    points: int = 8,
    chunk: int = 4,
) -> Callable[..., Sensitivity]:
    """P of one example, as a pure function.

    Args:
      task: with `embed` and `head`; see `trustml.task`.
      form: one of `FORMS`.
      w: 'predicted' (one-hot), 'target' (example['label']), 'uniform', or 'given'.
      output: f, one of `OUTPUTS`; 'margin' is log p_k - log(1 - p_k). 'displacement'
        always takes probabilities.
      temperature: divides the log-probabilities before they are made probabilities.
      points: of the path integral.
      chunk: VJPs at a time where w is dense.

    Returns:
      fn(params, example, v, words, baseline=None, weights=None) -> Sensitivity.
        v: float[T] or float[T, D], >= 0. words: bool[T]; padding and special tokens are
        False and count for nothing, whatever they hold. baseline: b, float[D] or
        float[T, D], for 'integrated' and 'displacement'. weights: float[K] >= 0, where
        w='given'.

    Raises:
      ValueError: when built, for unknown options or a task without `embed` or `head`;
        when called, without a baseline or weights that the options need.
    """
    embed, head = _parts(task)
    form = _validate.one_of("form", form, FORMS)
    w = _validate.one_of("w", w, (*WEIGHTS, "given"))
    output = _validate.one_of("output", output, OUTPUTS)
    tau = _validate.positive("temperature", temperature, "1.0 leaves it as it is")
    _validate.integer_at_least("points", points, 1, "8 is usual")
    _validate.integer_at_least("chunk", chunk, 1, "4 is usual")

    def measure(params, example, v, words, baseline=None, weights=None):
        if form in ("integrated", "displacement") and baseline is None:
            cure = "give the mean embedding, or the counterfactual's"
            _validate.fail("baseline", baseline, f"is needed by form={form!r}", cure)
        if (w == "given") != (weights is not None):
            cure = "give both or neither"
            _validate.fail("weights", weights, f"does not go with w={w!r}", cure)
        embedded = embed(params, example)
        words = jnp.asarray(words, bool)
        v_TD = _spread(v, words, embedded)

        f = _outputs(head, params, example, output, tau)

        def class_weights(values):
            if weights is not None:
                return jnp.asarray(weights, values.dtype)
            if w == "uniform":
                return jnp.full_like(values, 1.0 / values.size)
            chosen = jnp.argmax(values) if w == "predicted" else example["label"]
            return jax.nn.one_hot(chosen, values.size, dtype=values.dtype)

        if form == "displacement":
            return _displacement(head, params, example, embedded, v_TD, baseline, tau)
        if form == "signed":
            values, moved = jax.jvp(f, (embedded,), (v_TD,))
            value = class_weights(values) @ moved
            # Parts need the other mode; unused, the compiler drops them.
            _, pull = jax.vjp(f, embedded)
            parts = jnp.sum(pull(class_weights(values))[0] * v_TD, axis=1)
            nan = jnp.full_like(value, jnp.nan)
            return Sensitivity(value, nan, parts)
        if form == "integrated":
            chosen = class_weights(f(embedded))
            attribution = _path(f, chosen, baseline, embedded, words, points)
            size = jnp.abs(attribution)
            # A token has one weight: the mean over its coordinates.
            return _shared(size, size * v_TD.mean(axis=1))
        values, pull = jax.vjp(f, embedded)
        weight = class_weights(values)
        if w in ("predicted", "target"):
            size = jnp.abs(pull(weight)[0])
        else:
            one_hot = jnp.eye(values.size, dtype=values.dtype)
            each = jax.lax.map(
                lambda row: jnp.abs(pull(row[0])[0]) * row[1],
                (one_hot, weight),
                batch_size=min(chunk, values.size),
            )
            size = each.sum(axis=0)
        size = jnp.where(words[:, None], size, 0.0)
        return _shared(size.sum(axis=1), jnp.sum(size * v_TD, axis=1))

    return measure


def directions(
    task: task_lib.Task,
    *,
    attribution: str = "gradient",
    normalise: str = "l1",
    per_coordinate: bool = False,
    points: int = 8,
) -> Callable[..., jax.Array]:
    """The v of a protected status model: how much each input reveals.

    |gradient| of the margin of the status it predicts (a margin, so that a certain
    model has a gradient left), or its path-integrated attribution.

    Args:
      task: the PSM, with `embed` and `head`.
      attribution: 'gradient' or 'integrated'.
      normalise: 'l1', 'l2' or 'none', over what counts as words.
      per_coordinate: float[T, D]; only for models that share their embeddings.
        Otherwise float[T], summed over D.
      points: of the path integral.

    Returns:
      fn(params, example, words, baseline=None) -> float[T] or float[T, D].

    Raises:
      ValueError: as `prediction_sensitivity`.
    """
    embed, head = _parts(task)
    kinds = ("gradient", "integrated")
    attribution = _validate.one_of("attribution", attribution, kinds)
    normalise = _validate.one_of("normalise", normalise, NORMS)
    if per_coordinate and attribution == "integrated":
        bound = "is by tokens with attribution='integrated'"
        _validate.fail("per_coordinate", per_coordinate, bound, "leave it False")

    def of_one(params, example, words, baseline=None):
        embedded = embed(params, example)
        words = jnp.asarray(words, bool)

        f = _outputs(head, params, example, "margin", 1.0)
        if attribution == "integrated":
            if baseline is None:
                bound = "is needed by attribution='integrated'"
                _validate.fail("baseline", baseline, bound, "give the mean embedding")
            values = f(embedded)
            chosen = jax.nn.one_hot(jnp.argmax(values), values.size, dtype=values.dtype)
            v = jnp.abs(_path(f, chosen, baseline, embedded, words, points))
        else:
            values, pull = jax.vjp(f, embedded)
            chosen = jax.nn.one_hot(jnp.argmax(values), values.size, dtype=values.dtype)
            v = jnp.abs(pull(chosen)[0])
            v = v if per_coordinate else v.sum(axis=1)
        return normalised(v, words, normalise)

    return of_one


def normalised(v: Any, words: Any, how: str = "l1") -> jax.Array:
    """Makes v >= 0, with zeros at what is no word, of norm 1 unless it is 0.

    Args:
      v: float[T] or float[T, D]; for a lexicon 1 at its words and 0 elsewhere.
      words: bool[T].
      how: 'l1', 'l2' or 'none'.
    """
    how = _validate.one_of("normalise", how, NORMS)
    v, words = jnp.asarray(v), jnp.asarray(words, bool)
    v = jnp.where(words if v.ndim == 1 else words[:, None], jnp.abs(v), 0.0)
    if how == "none":
        return v
    size = v.sum() if how == "l1" else jnp.sqrt((v**2).sum())
    return v / jnp.where(size > 0, size, 1.0)


def lexicon(tokens: Any, ids: Any, words: Any, how: str = "l1") -> jax.Array:
    """The v of a list of words: 1 at tokens that are on it, normalised.

    Args:
      tokens: int[T].
      ids: int[N], tokens of the list.
      words: bool[T].
      how: as of `normalised`.
    """
    tokens, ids = jnp.asarray(tokens), jnp.asarray(ids)
    on_it = jnp.isin(tokens, ids).astype(float)
    return normalised(on_it, words, how)


def by_word(tokens: Any, word: Any, words: int) -> jax.Array:
    """Parts of sub-words added up: float[T] -> float[W].

    Args:
      tokens: float[T], of `Sensitivity.tokens`.
      word: int[T], the number of each token's word; a negative one is left out.
      words: W.
    """
    word = jnp.asarray(word)
    place = jnp.where(word >= 0, word, words)
    return jnp.zeros(words).at[place].add(jnp.asarray(tokens), mode="drop")


def frobenius(
    task: task_lib.Task,
    *,
    probes: int = 8,
    output: str = "prob",
    temperature: float = 1.0,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """|J|_F^2 of one example by random signs: E |r^T J|^2 = |J|_F^2.

    Args:
      task: with `embed` and `head`.
      probes: VJPs, m >= 2.
      output: f.
      temperature: as of `prediction_sensitivity`.

    Returns:
      fn(key, params, example, words) -> (estimate float[], its standard error
      float[]); what is no word counts for nothing.
    """
    embed, head = _parts(task)
    output = _validate.one_of("output", output, OUTPUTS)
    tau = _validate.positive("temperature", temperature)
    _validate.integer_at_least("probes", probes, 2, "8 is usual")

    def estimate(key, params, example, words):
        embedded = embed(params, example)

        f = _outputs(head, params, example, output, tau)
        values, pull = jax.vjp(f, embedded)
        signs = jax.random.rademacher(key, (probes, values.size), values.dtype)

        def one(row):
            rows = jnp.where(jnp.asarray(words, bool)[:, None], pull(row)[0], 0.0)
            return jnp.sum(rows**2)

        found = jax.lax.map(one, signs)
        return found.mean(), found.std(ddof=1) / jnp.sqrt(float(probes))

    return estimate


def _parts(task):
    if task.embed is None or task.head is None:
        cure = "take a model of text, such as models.bag or models.transformer"
        _validate.fail("task", "given", "has no embed and head", cure)
    return task.embed, task.head


def _outputs(head, params, example, output, tau):
    """The function f of embeddings."""

    def f(at):
        log_probs = task_lib.label_log_probs(head(params, at, example))
        return _output(log_probs, output, tau)

    return f


def _output(log_probs, output, tau):
    """The outputs f from log-probabilities, [K]."""
    if tau != 1.0:
        log_probs = jax.nn.log_softmax(log_probs / tau)
    if output == "prob":
        return jnp.exp(log_probs)
    if output == "log_prob":
        return log_probs
    k = log_probs.shape[0]
    others = ~jnp.eye(k, dtype=bool)
    rest = jnp.where(others, log_probs[None], -jnp.inf)
    return log_probs - jax.nn.logsumexp(rest, axis=1)


def _spread(v, words, embedded):
    """Makes v [T] or [T, D] a [T, D], 0 where there is no word."""
    v = jnp.asarray(v, embedded.dtype)
    if v.ndim == 1:
        v = jnp.broadcast_to(v[:, None], embedded.shape)
    if v.shape != embedded.shape:
        bound = f"is neither [T] nor [T, D] = {embedded.shape}"
        _validate.fail("v", f"array of shape {v.shape}", bound)
    return jnp.where(words[:, None], v, 0.0)


def _baseline(baseline, embedded):
    b = jnp.asarray(baseline, embedded.dtype)
    return jnp.broadcast_to(b if b.ndim == 2 else b[None], embedded.shape)


def _path(f, weights, baseline, embedded, words, points):
    """Path-integrated attributions of w . f, float[T].

    Words come from the baseline; what is no word stands still, so that the sum is
    w . f here less w . f with the words alone at the baseline.
    """
    start = jnp.where(words[:, None], _baseline(baseline, embedded), embedded)
    away = jnp.where(words[:, None], embedded - start, 0.0)

    def add(total, s):
        _, pull = jax.vjp(f, start + s.astype(away.dtype) * away)
        return total + pull(weights)[0], None

    at = (jnp.arange(points, dtype=float) + 0.5) / points
    total, _ = jax.lax.scan(add, jnp.zeros_like(away), at)
    return jnp.sum(away * total, axis=1) / points


def _shared(size, parts):
    """`Sensitivity` of sizes [T] and their weighted parts [T]."""
    value, total = parts.sum(), size.sum()
    some = total > 0
    share = jnp.where(some, value / jnp.where(some, total, 1.0), jnp.nan)
    return Sensitivity(value, share, parts)


def _displacement(head, params, example, embedded, v_TD, baseline, tau):
    v = v_TD.mean(axis=1)
    most = v.max()
    m = jnp.minimum(1.0, v / jnp.where(most > 0, most, 1.0))
    away = jnp.where(m[:, None] > 0, _baseline(baseline, embedded) - embedded, 0.0)
    moved = embedded + m[:, None] * away

    probs = _outputs(head, params, example, "prob", tau)
    value = jnp.abs(probs(embedded) - probs(moved)).sum() / 2
    nan = jnp.full_like(value, jnp.nan)
    return Sensitivity(value, nan, jnp.zeros_like(v))
