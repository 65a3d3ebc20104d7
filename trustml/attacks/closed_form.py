"""All membership attacks that need no training of their own, in one pass.

`scores` is pure and compiles once for given shapes; the host work (`rotate`) comes
before. 64 models by 5,010 examples are well below a second on two cores.

Example::

    import jax
    from trustml.attacks import closed_form, references, targets

    rotation = references.rotate(signals.member, signals.pair, budget=16)
    run = jax.jit(closed_form.scores)
    for name, found in run(
        signals.margin, signals.log_prob, rotation, signals.valid
    ).items():
        print(name, closed_form.THREATS[name].references)
        print(targets.measure(found.value, signals.member, found.valid).auc)

References: in the modules of the attacks.
"""

from jaxtyping import Bool, Float

from trustml.attacks import baselines, likelihood, ratio, references, threat
from trustml.attacks.references import Array, Rotation, Scores

# Name of an attack, as in the report -> what its attacker has.
THREATS = {
    "loss": threat.model(),
    "attack-P": threat.model(),
    "attack-R": threat.model(references="OUT only"),
    "calibrated": threat.model(references="OUT only"),
    "LiRA": threat.model(references="IN+OUT"),
    "LiRA, variance per example": threat.model(references="IN+OUT"),
    "LiRA, pooled variance": threat.model(references="IN+OUT"),
    "LiRA offline": threat.model(references="OUT only"),
    "Student-t": threat.model(references="IN+OUT"),
    "Student-t offline": threat.model(references="OUT only"),
    "RMIA": threat.model(references="IN+OUT"),
    "RMIA offline": threat.model(references="OUT only"),
}


def scores(
    margin: Float[Array, "M n Q"],
    log_prob: Float[Array, "M n Q"],
    rotation: Rotation,
    valid: Bool[Array, " n"] | None = None,
    *,
    a: float = 0.3,
) -> dict[str, Scores]:
    """Scores of every attack of `THREATS`, of every target and example.

    Args:
      margin: `Signals.margin`.
      log_prob: `Signals.log_prob`; for `ratio.check` to look at first, if in doubt.
      rotation: of `references.rotate`.
      valid: `Signals.valid`.
      a: of offline RMIA.

    Returns:
      name -> Scores. Variance per example is not valid where a side has less than two
      references, the rest wherever the references that they need are missing.
    """
    seen = references.summary(margin, rotation, valid)
    means = ratio.log_means(log_prob, rotation, valid)
    return {
        "loss": baselines.loss(log_prob, valid),
        "attack-P": baselines.population_rank(margin, ~rotation.member, valid),
        "attack-R": baselines.reference_rank(margin, rotation, valid),
        "calibrated": baselines.calibrated(margin, seen),
        "LiRA": likelihood.lira(margin, seen),
        "LiRA, variance per example": likelihood.lira(
            margin, seen, variance="per_example"
        ),
        "LiRA, pooled variance": likelihood.lira(margin, seen, variance="pooled"),
        "LiRA offline": likelihood.lira_offline(margin, seen),
        "Student-t": likelihood.student_t(margin, seen),
        "Student-t offline": likelihood.student_t_offline(margin, seen),
        "RMIA": ratio.rmia(log_prob, means),
        "RMIA offline": ratio.rmia_offline(log_prob, means, a=a),
    }
