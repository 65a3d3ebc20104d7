"""Gradient matching (DLG, TAG): search for the inputs that give the gradient seen.

    min over x', y'   D( grad_params mean_b CE(head(params, x'_b), softmax(y'_b)), g )

    dlg      ||g' - g||_2^2                               (Zhu, Liu, Han 2019)
    tag      ||g' - g||_2^2 + sum_leaf a_leaf ||g' - g||_1        (Deng et al. 2021)
    cosine   1 - <g', g> / (||g'|| ||g||), blind to scale, hence to clipping
                                                          (Geiping et al. 2020)

Both terms of dlg and tag are divided by the size of g (its squared norm, its L1 norm),
so that learning rates carry over. Unknown inputs are either

- `embeddings`: x' [B, T, D] are dummy embeddings, decoded token by token by the nearest
  row of the table; only gradients of the layers behind the table are matched; or
- `tokens`: x' = softmax(z) table, z [B, T, V], decoded by argmax; the gradient of the
  table is matched as well, which is where a bag of words keeps single tokens apart. (A
  mean of dummy embeddings does not: use `tokens` there, and a `temperature` below 1,
  or two positions share two tokens by halves.)

Who sees the gradient of the table sees which rows are not 0 (`rows.nonzero`): with
these `candidates` the search has no tokens left to find, only how often each comes and,
in models that read one token after another, where.

Any optax optimizer does, Adam or L-BFGS, with restarts by `vmap`; the one of smallest
distance wins. The gradient is differentiated once more, so an operation that stops
derivatives blinds the search: `smooth.check` tells before.

Dimension key: B texts, T tokens, D width, V tokens of the vocabulary, C classes, S
restarts.

Example::

    attack = matching.matcher(task, template, table=lambda p: p['table']['embedding'])
    guess = jax.jit(attack)(params, gradient, jax.random.key(0))
    guess.tokens, guess.labels, guess.distance

References: https://arxiv.org/abs/1906.08935, https://arxiv.org/abs/2103.06819 (its
  factor a_leaf falls with depth), https://arxiv.org/abs/2003.14053
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trustml import _validate
from trustml import task as task_lib

DISTANCES = ("dlg", "tag", "cosine")
INPUTS = ("embeddings", "tokens")


class Guess(NamedTuple):
    """What gradient matching found.

    Attributes:
      tokens: int32[B, T]; ids, 0 at and after the length.
      labels: float32[B, C]; soft labels.
      distance: float32[], of the best restart.
      distances: float32[S], of all.
    """

    tokens: jax.Array
    labels: jax.Array
    distance: jax.Array
    distances: jax.Array


class Dummy(NamedTuple):
    """The unknowns: `x` [B, T, D] or [B, T, V], `y` [B, C] logits of labels."""

    x: jax.Array
    y: jax.Array


def soft_cross_entropy(prediction: Any, soft_label: jax.Array) -> jax.Array:
    """- sum_c q_c log p_c, float32[]; only the label of a joint prediction."""
    return -jnp.sum(soft_label * task_lib.label_log_probs(prediction))


def matcher(
    task: task_lib.Task,
    template: Mapping[str, Any],
    *,
    table: Callable[[Any], jax.Array],
    distance: str = "dlg",
    inputs: str = "embeddings",
    l1_weights: Any = 0.01,
    known_labels: Any = None,
    candidates: Any = None,
    temperature: float = 1.0,
    soft_loss: Callable[[Any, jax.Array], jax.Array] = soft_cross_entropy,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 1000,
    restarts: int = 8,
) -> Callable[[Any, Any, Any], Guess]:
    """A search for the batch behind a gradient.

    Args:
      task: with `embed` a lookup in `table`, and `head`; its loss is the mean over the
        batch of `soft_loss` at the true label (dropout off).
      template: columns of a batch of B examples with what the server knows: `tokens`
        int32[B, T] (only the shape is read), `length` int32[B], and whatever else
        `head` reads.
      table: params -> [V, D].
      distance: 'dlg', 'tag' or 'cosine'.
      inputs: 'embeddings' or 'tokens'; see the module docstring.
      l1_weights: a_leaf of 'tag': one number, or a pytree of them like the params.
      known_labels: int[B], where the label leak has told them; None searches them too.
      candidates: int[K], the only tokens that are guessed; may repeat. None: all V.
      temperature: of the softmax of `tokens` at the end, in (0, 1]; it falls from 1 by
        a constant factor a step.
      soft_loss: (prediction, float32[C]) -> float32[].
      optimizer: Adam with rate 0.05 where None; `optax.lbfgs()` fits as well.
      steps: of the optimizer.
      restarts: S, from independent starts.

    Returns:
      fn(params, gradient like params, key) -> Guess; pure, for `jax.jit`.

    Raises:
      ValueError: when built, for options out of bounds or a task without `embed` and
        `head`; when traced, if `table` does not fit the embeddings.
    """
    _validate.one_of("distance", distance, DISTANCES)
    _validate.one_of("inputs", inputs, INPUTS)
    steps = _validate.integer_at_least("steps", steps, 1, "1000 is usual")
    restarts = _validate.integer_at_least("restarts", restarts, 1, "8 is usual")
    if not 0.0 < _validate.finite("temperature", temperature) <= 1.0:
        _validate.fail("temperature", temperature, "must lie in (0, 1]", "try 0.1")
    if optimizer is None:
        optimizer = optax.adam(0.05)
    optimizer = optax.with_extra_args_support(optimizer)
    gradient_of = gradient_fn(
        task,
        template,
        table=table,
        inputs=inputs,
        candidates=candidates,
        soft_loss=soft_loss,
    )
    size, length = np.shape(template["tokens"])

    def start(params, key) -> Dummy:
        rows = _rows(table(params), candidates)
        keys = jax.random.split(key)
        if inputs == "tokens":
            x = jax.random.normal(keys[0], (size, length, rows.shape[0]))
        else:
            x = jax.random.normal(keys[0], (size, length, rows.shape[1]))
            x = x * jnp.std(rows)
        logits = (size, classes(task, params, template))
        return Dummy(x, 0.1 * jax.random.normal(keys[1], logits))

    def soften(y):
        if known_labels is None:
            return jax.nn.softmax(y)
        known = jnp.asarray(known_labels, jnp.int32)
        return jax.nn.one_hot(known, y.shape[1], dtype=y.dtype)

    def search(params, gradient, key) -> Guess:
        _check_lookup(task, template, table, params)
        seen = _matched(gradient, inputs, table)

        def objective(dummy, sharper=1.0 / temperature):
            x = dummy.x * sharper if inputs == "tokens" else dummy.x
            made = gradient_of(params, x, soften(dummy.y))
            made = _matched(made, inputs, table)
            return _distance(distance, made, seen, l1_weights)

        def run(key):
            dummy = start(params, key)

            def step(carry, sharper):
                dummy, state = carry

                def now(dummy):
                    return objective(dummy, sharper)

                value, grads = jax.value_and_grad(now)(dummy)
                updates, state = optimizer.update(
                    grads,
                    state,
                    dummy,
                    value=value,
                    grad=grads,
                    value_fn=now,
                )
                return (optax.apply_updates(dummy, updates), state), None

            carry = (dummy, optimizer.init(dummy))
            sharper = jnp.geomspace(1.0, 1.0 / temperature, steps)
            (dummy, _), _ = jax.lax.scan(step, carry, sharper)
            final = objective(dummy)
            return dummy, jnp.where(jnp.isfinite(final), final, jnp.inf)

        dummies, finals = jax.vmap(run)(jax.random.split(key, restarts))
        best = jnp.argmin(finals)
        dummy = jax.tree.map(lambda leaf: leaf[best], dummies)
        if inputs == "tokens":
            tokens = jnp.argmax(dummy.x, axis=-1).astype(jnp.int32)
        else:
            tokens = nearest(dummy.x, _rows(table(params), candidates))
        if candidates is not None:
            tokens = jnp.asarray(candidates, jnp.int32)[tokens]
        lengths = jnp.asarray(template["length"], jnp.int32)
        real = jnp.arange(length, dtype=jnp.int32)[None, :] < lengths[:, None]
        tokens = jnp.where(real, tokens, 0)
        return Guess(tokens, soften(dummy.y), finals[best], finals)

    return search


def gradient_fn(
    task: task_lib.Task,
    template: Mapping[str, Any],
    *,
    table: Callable[[Any], jax.Array],
    inputs: str = "embeddings",
    candidates: Any = None,
    soft_loss: Callable[[Any, jax.Array], jax.Array] = soft_cross_entropy,
) -> Callable[[Any, jax.Array, jax.Array], Any]:
    """The gradient of the parameters as a function of dummy inputs and soft labels.

    Returns:
      (params, x, soft labels [B, C]) -> like params; x as in `Dummy`.

    Raises:
      ValueError: for a task without `embed` and `head`.
    """
    if task.embed is None or task.head is None:
        _validate.fail(
            "task",
            "embed or head is None",
            "has no embeddings to search",
            "give a task of text",
        )
    head = task.head
    columns = {name: jnp.asarray(column) for name, column in template.items()}

    def loss(params, x, soft_labels):
        if inputs == "tokens":
            rows = _rows(table(params), candidates)
            x = jnp.einsum("btv,vd->btd", jax.nn.softmax(x), rows)
        predictions = jax.vmap(head, (None, 0, 0))(params, x, columns)
        return jnp.mean(jax.vmap(soft_loss)(predictions, soft_labels))

    return jax.grad(loss)


def nearest(x: jax.Array, rows_VD: jax.Array) -> jax.Array:
    """The id of the nearest row (L2) to every vector, [..., D] -> int32[...]."""
    squares_V = jnp.sum(jnp.square(rows_VD), axis=1)
    products = jnp.einsum("...d,vd->...v", x, rows_VD)
    squares = squares_V.reshape((1,) * (products.ndim - 1) + (-1,))
    return jnp.argmin(squares - 2 * products, axis=-1).astype(jnp.int32)


def _rows(table_VD, candidates):
    return table_VD if candidates is None else table_VD[jnp.asarray(candidates)]


def _matched(gradient, inputs: str, table) -> list[tuple[int, jax.Array]]:
    """The leaves that are matched, with their number; dummy embeddings skip the table.

    The table is found as the one leaf that `table` returns.
    """
    leaves, tree = jax.tree.flatten(gradient)
    if inputs == "tokens":
        return list(enumerate(leaves))
    number = table(jax.tree.unflatten(tree, range(len(leaves))))
    if not isinstance(number, int):
        _validate.fail(
            "table", number, "does not return a leaf of the params", "return one leaf"
        )
    return [(i, leaf) for i, leaf in enumerate(leaves) if i != number]


def _distance(kind: str, made, seen, l1_weights) -> Any:
    made, numbers = [g for _, g in made], [i for i, _ in made]
    seen = [g for _, g in seen]
    square = optax.tree.norm(seen, squared=True)
    if kind == "cosine":
        dot = optax.tree.vdot(made, seen)
        norms = optax.tree.norm(made, squared=True) * square
        return 1.0 - dot / jnp.sqrt(jnp.maximum(norms, 1e-30))
    differences = [a - b for a, b in zip(made, seen, strict=True)]
    total = optax.tree.norm(differences, squared=True) / jnp.maximum(square, 1e-30)
    if kind == "tag":
        weights = jax.tree.leaves(l1_weights)
        ones = len(weights) == 1
        size = sum(jnp.sum(jnp.abs(g)) for g in seen)
        absolute = sum(
            weights[0 if ones else i] * jnp.sum(jnp.abs(d))
            for i, d in zip(numbers, differences, strict=True)
        )
        total = total + absolute / jnp.maximum(size, 1e-30)
    return total


def first(template: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The first example of a template."""
    return {name: jnp.asarray(column)[0] for name, column in template.items()}


def classes(task: task_lib.Task, params: Any, template: Mapping[str, Any]) -> int:
    """C, of the label that the task predicts."""

    def label(params, example):
        return task_lib.label_log_probs(task.predict(params, example))

    return jax.eval_shape(label, params, first(template)).shape[0]


def _check_lookup(task, template, table, params) -> None:
    """Refuses an `embed` with more to it than a lookup, by shape of its program."""
    made = jax.eval_shape(task.embed, params, first(template))
    rows = table(params)
    if rows.ndim != 2 or made.shape != (np.shape(template["tokens"])[1], rows.shape[1]):
        _validate.fail(
            "table",
            list(rows.shape),
            f"does not fit embeddings of shape {list(made.shape)}",
            "return the table [V, D] that task.embed reads",
        )
