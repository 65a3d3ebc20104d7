"""Quantile regression: is the target surer of an example than of others like it?

No reference models: a small network learns from non-members alone what margin the
target gives to an example with these features, and the score is how far the example is
above. One of two heads, s the signal:

    gaussian   mu(x), log sigma(x) by likelihood        score (s - mu)/sigma
    pinball    q(x) by max((1 - alpha) u, -alpha u),    score s - q
               u = q - s below, s - q above: the 1 - alpha quantile

The features are the input or a frozen representation of it. Non-members that trained
the network must not be scored beside the members: `split` keeps them apart.

Dimension key: `n` examples, `R` rows to fit, `F` features.

Example::

    parts = quantile.split(signals.member[0], seed=0)
    rows = {name: (x[part], margin[part]) for name, part in parts._asdict().items()}
    fitted = quantile.fit(key, *rows['fit'], validation=rows['validate'])
    scores = quantile.score(fitted, *rows['evaluate'])

References: https://arxiv.org/abs/2307.03694
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from trustml import _validate
from trustml.attacks import heads, references
from trustml.attacks.references import Array, Scores

HEADS = ("gaussian", "pinball")


class Split(NamedTuple):
    """Rows of the three parts; the first two hold non-members only.

    Attributes:
      fit: int64[R], to learn from.
      validate: int64[R'], to stop by.
      evaluate: int64[R''], all members and the other non-members.
    """

    fit: np.ndarray
    validate: np.ndarray
    evaluate: np.ndarray


class Quantile(NamedTuple):
    """A fitted regression.

    Attributes:
      params: of the network; two outputs for the Gaussian head, one for pinball.
      centre: float32[F], of the features.
      scale: float32[F].
      signal_centre: float32[].
      signal_scale: float32[].
      validation_loss: float32[], in units of the standardised signal.
    """

    params: heads.Params
    centre: Array
    scale: Array
    signal_centre: Array
    signal_scale: Array
    validation_loss: Array


def split(
    member: Bool[np.ndarray, " n"],
    *,
    evaluate: float = 0.5,
    validate: float = 0.2,
    seed: int = 0,
) -> Split:
    """Draws which non-members are learnt from and which are scored.

    Args:
      member: of the target.
      evaluate: share of the non-members that is scored.
      validate: share of the rest that decides when to stop.
      seed: of the draw.

    Raises:
      ValueError: if a share is outside (0, 1) or leaves a part empty.
    """
    for field, share in (("evaluate", evaluate), ("validate", validate)):
        _validate.in_open_interval(f"quantile.{field}", share, 0.0, 1.0)
    member = np.asarray(member, bool)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(~member))
    scored = round(evaluate * rows.size)
    held = round(validate * (rows.size - scored))
    parts = rows[:scored], rows[scored : scored + held], rows[scored + held :]
    if min(part.size for part in parts) == 0:
        raise ValueError(
            f"{rows.size} non-members do not fill the three parts; give more, or "
            f"change evaluate={evaluate} and validate={validate}."
        )
    scored_rows = np.sort(np.concatenate([np.flatnonzero(member), parts[0]]))
    return Split(np.sort(parts[2]), np.sort(parts[1]), scored_rows)


def fit(
    key: jax.Array,
    features: Float[Array, "R F"],
    signal: Float[Array, " R"],
    *,
    validation: tuple[Array, Array],
    head: str = "gaussian",
    alpha: float = 0.05,
    hidden: int = 64,
    steps: int = 1000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
) -> Quantile:
    """Learns the signal of non-members from their features.

    Args:
      key: of the network and the batches.
      features: of the non-members to learn from.
      signal: margin under the target, of the same.
      validation: (features, signal) of other non-members; the best of 20 rounds counts.
      head: 'gaussian' or 'pinball'.
      alpha: of pinball, the false-alarm rate that the quantile is for.
      hidden: units of the hidden layer; 0 for a linear model.
      steps: of Adam.
      batch_size: rows a step, drawn with replacement.
      learning_rate: at the start.

    Returns:
      Quantile.

    Raises:
      ValueError: on an unknown head or numbers out of range.
    References: https://arxiv.org/abs/2307.03694
    """
    _validate.one_of("quantile.head", head, HEADS, "use 'gaussian'")
    alpha = _validate.in_open_interval("quantile.alpha", alpha, 0.0, 1.0, "try 0.05")
    hidden = _validate.integer_at_least("quantile.hidden", hidden, 0)
    features, signal = _float(features), _float(signal)
    centre, scale = heads.standard(features)
    middle, spread = heads.standard(signal[:, None])
    start_key, batch_key = (jax.random.fold_in(key, part) for part in (0, 1))
    width = features.shape[1]
    outputs = 2 if head == "gaussian" else 1
    sizes = (width, hidden, outputs) if hidden else (width, outputs)

    def on(params, x, s):
        out = heads.apply(params, _standard(x, centre, scale))
        u = (s - middle[0]) / spread[0]
        if head == "gaussian":
            z = (u - out[:, 0]) * jnp.exp(-out[:, 1])
            return jnp.mean(0.5 * z * z + out[:, 1])
        u = u - out[:, 0]
        return jnp.mean(jnp.maximum((1.0 - alpha) * u, -alpha * u))

    def loss(params, key):
        rows = jax.random.randint(key, (batch_size,), 0, signal.size)
        return on(params, features[rows], signal[rows])

    held = _float(validation[0]), _float(validation[1])
    fitted = heads.fit(
        heads.init(start_key, sizes),
        loss,
        batch_key,
        steps=steps,
        learning_rate=learning_rate,
        check=lambda params: on(params, *held),
    )
    return Quantile(fitted.params, centre, scale, middle[0], spread[0], fitted.check)


def score(
    fitted: Quantile, features: Float[Array, "n F"], signal: Float[Array, " n"]
) -> Scores:
    """How far the signal is above what the features let expect.

    Args:
      fitted: of `fit`.
      features: of the examples, not among those learnt from.
      signal: their margin under the target.

    Returns:
      Scores [n]; not valid where a feature or the signal is not finite.
    """
    features, signal = _float(features), _float(signal)
    ok = jnp.isfinite(signal) & jnp.all(jnp.isfinite(features), axis=1)
    x = _standard(
        jnp.where(ok[:, None], features, 0.0),
        jnp.asarray(fitted.centre),
        jnp.asarray(fitted.scale),
    )
    out = heads.apply(fitted.params, x)
    u = (jnp.where(ok, signal, 0.0) - fitted.signal_centre) / fitted.signal_scale
    value = u - out[:, 0]
    if out.shape[1] == 2:
        value = value * jnp.exp(-out[:, 1])
    return references.scores(value, ok)


def _standard(x, centre, scale):
    return (x - centre[None, :]) / scale[None, :]


def _float(x):
    return jnp.asarray(x, jnp.float32)
