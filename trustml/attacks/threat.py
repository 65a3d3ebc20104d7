"""The threat model of a result: who attacks, with what, and what was promised.

A figure of an attack says little without four answers: what the attacker sees of the
target, which models he trains himself, whether his data come from the distribution of
the target's, and how membership came about. Membership that was drawn at random makes
members and non-members alike in everything else. Where it was observed (a date, a
crawl), an attack may measure the difference of the distributions instead: run
`trustml.attacks.blind` beside it and let the reader see that figure first.

Example::

    from trustml.attacks import membership, threat

    who = threat.model(references='IN+OUT', membership='observational')
    found = blind.measure(features, member)
    result = membership.from_scores(
        ins, outs, attack='Student-t', blind=found, **who._asdict()
    )
    result.warnings

References: https://arxiv.org/abs/2112.03570, https://arxiv.org/abs/2402.07841
"""

from typing import NamedTuple

from trustml import _validate

ACCESS = (
    "label",
    "confidence",
    "loss",
    "white-box",
    "white-box final",
    "white-box all steps",
)
REFERENCES = ("none", "OUT only", "IN+OUT")
MEMBERSHIP = ("randomised", "observational")


class Threat(NamedTuple):
    """What the attacker has, and how membership was decided.

    Attributes:
      access: what the attacker sees of the target, one of `ACCESS`.
      references: models that the attacker trains, one of `REFERENCES`.
      population_same_distribution: the attacker's data come from the distribution of
        the target's training data.
      membership: 'randomised' or 'observational'.
    """

    access: str
    references: str
    population_same_distribution: bool
    membership: str


def model(
    *,
    access: str = "loss",
    references: str = "none",
    population_same_distribution: bool = True,
    membership: str = "randomised",
) -> Threat:
    """A checked `Threat`.

    Raises:
      ValueError: on a name that is none of the known ones.
    """
    return Threat(
        _validate.one_of("threat.access", access, ACCESS),
        _validate.one_of("threat.references", references, REFERENCES),
        _validate.boolean(
            "threat.population_same_distribution", population_same_distribution
        ),
        _validate.one_of("threat.membership", membership, MEMBERSHIP),
    )
