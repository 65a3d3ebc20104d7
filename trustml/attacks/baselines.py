"""The plain membership attacks: the loss, and its rank or distance among references.

| function | score | the attacker has |
|---|---|---|
| `loss` | log p_y, mean over queries | the target |
| `population_rank`, attack-P | share of non-members below | also non-members |
| `reference_rank`, attack-R | share of OUT references below | OUT references |
| `calibrated` | margin - mean margin of the OUT references | OUT references |

`loss` asks how well the target knows an example, the last two whether it knows it
better than models that never saw it: that takes the difficulty of the example out.
`calibrated` on references distilled from the target's answers is attack-D.

A rank has few values, and ties at the top cost exactly the small false-alarm rates one
looks at. Both ranks therefore move on within a step by the distance to the neighbours.
On one model `population_rank` orders examples as `loss` does (both rise with the
margin); what it adds is a scale that is the same for all models.

Dimension key: `M` models, `n` examples, `Q` queries, `Z` non-members of the population.

Example::

    from trustml.attacks import baselines, references

    rotation = references.rotate(signals.member, signals.pair)
    scores = baselines.reference_rank(signals.margin, rotation, signals.valid)

References: https://arxiv.org/abs/1709.01604 (loss), https://arxiv.org/abs/2111.09679
(attacks P, R, D), https://arxiv.org/abs/2111.08440 (calibrated)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from trustml.attacks import references
from trustml.attacks.references import Array, Rotation, Scores, Summary


def loss(
    log_prob: Float[Array, "M n Q"], valid: Bool[Array, " n"] | None = None
) -> Scores:
    """Log-probability of the true class, mean over queries.

    Args:
      log_prob: `Signals.log_prob`.
      valid: `Signals.valid`.

    Returns:
      Scores.
    References: https://arxiv.org/abs/1709.01604
    """
    log_prob, ok = references.clean(log_prob, valid)
    return _scores(jnp.mean(log_prob, axis=-1), ok)


def population_rank(
    margin: Float[Array, "M n Q"],
    population: Bool[Array, "M Z"] | Float[Array, "M Z Q"],
    valid: Bool[Array, " n"] | None = None,
) -> Scores:
    """Attack-P: where an example stands among non-members of the target.

    (#{z: margin_z < margin_x} + position between the neighbours) / (Z + 1)

    Args:
      margin: `Signals.margin`; the mean over queries is ranked.
      population: margins of other examples that no model has seen, float[M, Z, Q]; or
        the non-members of each target among the n, bool[M, n] (`~Signals.member`). An
        example does not count itself.
      valid: `Signals.valid`.

    Returns:
      Scores in (0, 1); not valid for a target without non-members.
    References: https://arxiv.org/abs/2111.09679
    """
    margin, ok = references.clean(margin, valid)
    mean = jnp.mean(margin, axis=-1)
    population = jnp.asarray(population)
    if population.dtype == bool:
        chosen = population & ok[None, :]
        others = jnp.where(chosen, mean, jnp.inf)
    else:
        chosen = jnp.all(jnp.isfinite(population), axis=-1)
        others = jnp.where(chosen, jnp.mean(population, axis=-1), jnp.inf)
    count = jnp.sum(chosen, axis=-1)

    def one(x, others, count):
        ordered = jnp.sort(others)
        below = jnp.searchsorted(ordered, x, side="left")
        low = ordered[jnp.maximum(below - 1, 0)]
        high = ordered[jnp.minimum(below, ordered.size - 1)]
        # Past the last one, and before the first, the step goes on for ever.
        width = jnp.maximum(high - low, 1e-30)
        inside = jnp.clip((x - low) / jnp.where(jnp.isfinite(width), width, 1.0), 0, 1)
        up = _bent(x - ordered[jnp.maximum(count - 1, 0)])
        down = _bent(x - ordered[0])
        part = jnp.where(below == 0, down, jnp.where(below >= count, up, inside))
        return (below.astype(jnp.float32) + part) / (count + 1).astype(jnp.float32)

    value = jax.vmap(one)(mean, others, count)
    return _scores(value, ok, (count > 0)[:, None])


def reference_rank(
    margin: Float[Array, "M n Q"],
    rotation: Rotation,
    valid: Bool[Array, " n"] | None = None,
) -> Scores:
    """Attack-R: where the target stands among the OUT references of the example.

    (#{r: margin_r < margin_x} + part) / (n_out + 1), mean over queries; part in (0, 1)
    rises with margin_x - m_out and orders examples of the same rank.

    Args:
      margin: `Signals.margin`.
      rotation: of `references.rotate`.
      valid: `Signals.valid`.

    Returns:
      Scores in (0, 1); not valid without an OUT reference.
    References: https://arxiv.org/abs/2111.09679
    """
    margin, ok = references.clean(margin, valid)

    def one(_, outside, target):
        x, chosen = margin[target], outside[:, :, None]
        count = jnp.sum(outside, axis=0, dtype=jnp.float32)[:, None]
        below = jnp.sum(chosen & (margin < x[None]), axis=0, dtype=jnp.float32)
        total = jnp.sum(jnp.where(chosen, margin, 0.0), axis=0)
        part = 0.5 * (1.0 + _squashed(x - total / jnp.maximum(count, 1.0)))
        return jnp.mean((below + part) / (count + 1.0), axis=-1), count[:, 0] > 0

    value, some = references.over_targets(one, rotation)
    return _scores(value, ok, some)


def calibrated(margin: Float[Array, "M n Q"], summary: Summary) -> Scores:
    """The margin less its mean over the OUT references; mean over queries.

    Args:
      margin: `Signals.margin`.
      summary: of `references.summary` on the same margins.

    Returns:
      Scores; not valid without an OUT reference.
    References: https://arxiv.org/abs/2111.08440
    """
    margin, _ = references.clean(margin, summary.valid)
    value = jnp.mean(margin - summary.mean_out, axis=-1)
    return _scores(value, summary.valid, summary.n_out > 0)


def _scores(value, ok, some=True):
    return references.scores(value, jnp.broadcast_to(ok[None, :], value.shape) & some)


def _squashed(x):
    """Into (-1, 1), rising everywhere float32 can tell; tanh is flat from 9 on."""
    return x / (1.0 + jnp.abs(x))


def _bent(x):
    return 0.5 * (1.0 + _squashed(x))
