"""The strong attack on a model of the trust report: shadow models and RMIA.

An attacker who has data of the same kind trains M models as the audited one was, each
on a random half of the training and validation examples together, without privacy or by
the private trainer at the same budget. Of every example he then knows what models say
that learnt it, and what models say that did not; the score is how much likelier the
target finds it than they do in the mean (`trustml.attacks.ratio`), which with few
references, and with privacy, finds more than likelihood ratios: on SNIPS with 4 of them
AUC 0.673 without privacy and 0.540 at epsilon = 8, where Student-t has 0.649 and 0.508
(`configs/membership_snips.py`). The target is the reported model itself. It is none of
the M, so all of them are its references: members are the training examples, others the
validation examples.

Example::

    attack = strong.prepare(config, data)
    found = strong.scores(config, attack, task, params, workdir)       # float64[n]

References: https://arxiv.org/abs/2112.03570 (shadow models, IN and OUT),
https://arxiv.org/abs/2312.03262 (RMIA).
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from trustml import specs
from trustml import task as task_lib
from trustml.attacks import ratio, references, signals
from trustml.data import datasets
from trustml.experiments import membership

SPLITS = ("train", "valid")


def prepare(config: specs.RunConfig, data: datasets.Dataset) -> membership.Attack:
    """The shadow models of one run, `report.shadow_models` of them.

    Raises:
      ValueError: for whatever is out of bounds, before anything is trained.
    """
    return membership.prepare(_shadows(config), data, SPLITS)


def scores(
    config: specs.RunConfig,
    attack: membership.Attack,
    task: task_lib.Task,
    params: Any,
    workdir: pathlib.Path,
) -> np.ndarray:
    """Scores of all training examples, then of all validation examples.

    Args:
      config: of the run.
      attack: of `prepare`.
      task: of the run.
      params: of the model that is attacked.
      workdir: of the run; what models say is kept in its directory `attack`.

    Returns:
      float64[n], larger means member; nan where a signal is not finite.
    """
    kept, _ = membership.collect(_shadows(config), attack, workdir / "attack")
    one = jax.tree.map(lambda x: x[None], params)
    _, log_prob = jax.jit(signals.of(task))(one, attack.columns)
    found = of_signals(kept.signals, np.asarray(log_prob))
    return found.astype(np.float64)


def of_signals(known: signals.Signals, log_prob: np.ndarray) -> np.ndarray:
    """RMIA scores of a target outside the design, float32[n].

    Args:
      known: what the shadow models say.
      log_prob: float32[1, n, Q], what the target says of the true class.
    """
    valid = known.valid & np.isfinite(log_prob).all(axis=(0, 2))
    rotation = references.outside_target(known.member)

    def score(shadow, target):
        return ratio.rmia(target, ratio.log_means(shadow, rotation, valid)).value[0]

    return np.asarray(jax.jit(score)(known.log_prob, log_prob))


def _shadows(config: specs.RunConfig) -> specs.RunConfig:
    attack = dataclasses.replace(
        config.attack,
        num_models=config.report.shadow_models,
        design="paired",
        epsilons=(),
    )
    return dataclasses.replace(config, attack=attack)
