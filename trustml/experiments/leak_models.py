"""Many small classifiers of texts at once, one for each leak and seed.

Training is one program: parameters, data and randomness have a leading axis of models.

Example::

    found = leak_models.measure(config, cue='implicit')
    found.value['displacement'].shape          # [S, L]: seeds, leaks
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trustml import rng, specs
from trustml import task as task_lib
from trustml.experiments import leak_worlds
from trustml.fairness import counterfactual, sensitivity
from trustml.models import bag

FORMS = ("abs", "share", "integrated", "displacement", "counterfactual")


class Measured(NamedTuple):
    """What was seen of one kind of cue; `S` seeds, `L` leaks.

    Attributes:
      value: form -> float[S, L], mean over test texts.
      accuracy: float[S, L], of the classifiers on test texts.
      status: float[S], accuracy of the protected status models.
      coverage: float[S], texts with a word that has a counterfactual.
      parts: float[L, T], |A_t| v_t of one text of the first seed, at every leak.
      words: of that text.
      certainty: float[S, L], mean probability of the predicted class.
    """

    value: dict[str, np.ndarray]
    accuracy: np.ndarray
    status: np.ndarray
    coverage: np.ndarray
    parts: np.ndarray
    words: list[str]
    certainty: np.ndarray


def classifier(config: specs.RunConfig, vocabulary: int, classes: int) -> task_lib.Task:
    """A bag of embeddings with a tanh layer."""
    return bag.task(
        vocabulary,
        classes,
        width=config.model.width,
        hidden=config.model.hidden,
        activation="tanh",
    )


def fit(config: specs.RunConfig, task: task_lib.Task, columns: Any, key: Any) -> Any:
    """Trains M models, each on rows of its own; pure.

    Args:
      config: `train.steps`, `train.batch_size` and `optimizer.learning_rate` count.
      task: of all.
      columns: arrays [M, N, ...].
      key: model m draws from `fold_in(key, m)`.

    Returns:
      Parameters with a leading axis M.
    """
    optimizer = optax.adam(
        optax.cosine_decay_schedule(config.optimizer.learning_rate, config.train.steps)
    )
    batch = config.train.batch_size

    def one(columns, number):
        key_of = jax.random.fold_in(key, number)
        size = columns["label"].shape[0]
        params = task.init(jax.random.fold_in(key_of, 0))

        def loss(params, rows, key):
            keys = jax.random.split(key, batch)
            return jax.vmap(task.loss, (None, 0, 0))(params, rows, keys).mean()

        def step(carry, n):
            params, state = carry
            key = jax.random.fold_in(key_of, n + 1)
            rows = jax.random.randint(jax.random.fold_in(key, 0), (batch,), 0, size)
            picked = jax.tree.map(lambda x: x[rows], columns)
            grads = jax.grad(loss)(params, picked, jax.random.fold_in(key, 1))
            change, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, change), state), None

        steps = jnp.arange(config.train.steps)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), steps)
        return params

    return jax.vmap(one)(columns, jnp.arange(columns["label"].shape[0]))


def _measures(task, status, pairs):
    """(params, status params, rows) of one model -> means over its test texts."""
    abs_form = sensitivity.prediction_sensitivity(task)
    path = sensitivity.prediction_sensitivity(task, form="integrated")
    moved = sensitivity.prediction_sensitivity(task, form="displacement")
    # By gradient every token of a bag would reveal the same.
    reveals = sensitivity.directions(status, attribution="integrated")

    def of_model(params, status_params, rows):
        every, width = rows["tokens"], rows["tokens"].shape[1]
        held = (jnp.arange(width)[None] < rows["length"][:, None]).astype(jnp.float32)

        def middle(task, params):
            embedded = jax.vmap(task.embed, (None, 0))(params, rows)
            return jnp.einsum("nt,ntd->d", held, embedded) / held.sum()

        b, b_status = middle(task, params), middle(status, status_params)

        def one(row):
            words = jnp.arange(width) < row["length"]
            v = reveals(status_params, row, words, b_status)
            by_gradient = abs_form(params, row, v, words)
            by_path = path(params, row, v, words, b)
            return by_gradient, by_path, moved(params, row, v, words, b)

        by_gradient, by_path, displaced = jax.vmap(one)(rows)
        predict = jax.vmap(task.predict, (None, 0))
        seen = predict(params, rows)
        swapped, changed = counterfactual.swap(every, pairs)
        other = predict(params, rows | {"tokens": swapped})
        apart = counterfactual.gap(seen, other, changed)
        values = {
            "abs": by_gradient.value.mean(),
            "share": by_path.share.mean(),
            "integrated": by_path.value.mean(),
            "displacement": displaced.value.mean(),
            # A text without a swapped word has the gap 0, as its coverage says.
            "counterfactual": apart.per_example.mean(),
        }
        right = jnp.argmax(seen, axis=1) == rows["label"]
        sure = jnp.exp(seen.max(axis=1)).mean()
        return values, right.mean(), sure, apart.coverage, by_path.tokens[0]

    return of_model


def measure(config: specs.RunConfig, cue: str) -> Measured:
    """Trains classifiers and protected status models, and measures all forms.

    Args:
      config: of the study.
      cue: 'explicit' or 'implicit'.
    """
    spec = config.leak
    seeds, leaks = range(spec.seeds), spec.leaks
    world = leak_worlds.make(spec.texts, cue, config.seed)
    task = classifier(config, world.vocabulary, world.classes)
    status = classifier(config, world.vocabulary, 2)

    def draw(n, part):
        made = [
            [world.draw(s, part, n, leak, k) for k, leak in enumerate(leaks)]
            for s in seeds
        ]
        flat = [one for row in made for one in row]
        return {name: np.stack([one[name] for one in flat]) for name in flat[0]}

    train, test = draw(spec.examples, 0), draw(spec.tested, 1)
    first = len(leaks) * np.arange(spec.seeds)  # a status model for each seed
    of_status = {name: column[first] for name, column in train.items()}
    of_status = of_status | {"label": of_status["gender"]}
    key = rng.step_key(rng.stream(rng.root(config.seed), f"leak_{cue}"), 0)
    run = jax.jit(
        lambda columns, key, task=task: fit(config, task, columns, key),
    )
    run_status = jax.jit(lambda columns, key: fit(config, status, columns, key))
    params = run(train, jax.random.fold_in(key, 0))
    status_params = run_status(of_status, jax.random.fold_in(key, 1))
    repeated = jax.tree.map(lambda x: jnp.repeat(x, len(leaks), axis=0), status_params)
    # Which gender a text has; any leak will do.
    said = jax.jit(
        jax.vmap(lambda p, rows: jax.vmap(status.predict, (None, 0))(p, rows))
    )(repeated, test)
    known = np.asarray(said.argmax(-1)) == test["gender"]
    of_model = jax.jit(
        lambda *of: jax.lax.map(lambda x: _measures(task, status, world.pairs)(*x), of)
    )
    values, right, sure, coverage, parts = of_model(params, repeated, test)
    shape, shown = (spec.seeds, len(leaks)), world.words(test["tokens"][0, 0])
    square = lambda x: np.asarray(x).reshape(shape)  # noqa: E731
    return Measured(
        {form: square(values[form]) for form in FORMS},
        square(right),
        known.reshape(*shape, -1).mean(axis=(1, 2)),
        square(coverage).mean(axis=1),
        np.asarray(parts).reshape(*shape, -1)[0, :, : len(shown)],
        shown,
        square(sure),
    )
