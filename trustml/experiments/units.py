"""What a step draws, clips and counts: single examples, or users with all of theirs.

`privacy.unit='user'` bundles the training rows by `data.user_column`
(`trustml.privacy.users`), with privacy or without, so that both kinds of run learn from
the same units. Evaluation and attacks keep to single examples.

Example::

    columns = units.columns(config, data)              # [U, k, ...] and their mask
    loss = units.loss(config, task.loss)               # of one row of these columns
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from trustml import specs
from trustml.data import batches, datasets
from trustml.privacy import users


def are_users(config: specs.RunConfig) -> bool:
    """Whether a unit is a user."""
    return config.privacy.unit == "user"


def columns(config: specs.RunConfig, data: datasets.Dataset) -> batches.Columns:
    """The training columns, one row a unit."""
    if not are_users(config):
        return data.train
    most = config.privacy.max_examples_per_user
    made = users.group(data.train, _ids(data), max_examples=most, seed=config.seed)
    return made.columns


def count(config: specs.RunConfig, data: datasets.Dataset) -> int:
    """How many units there are, without bundling them."""
    if are_users(config):
        return len(np.unique(_ids(data)))
    return batches.size(data.train)


def loss(config: specs.RunConfig, loss: Callable[..., Any]) -> Callable[..., Any]:
    """The loss of one unit, from the loss of one example."""
    return users.loss(loss) if are_users(config) else loss


def examples_each(columns: batches.Columns) -> float:
    """Examples of a unit, in the mean. NOT private where units are users."""
    if users.MASK not in columns:
        return 1.0
    return float(columns[users.MASK].sum(axis=1).mean())


def _ids(data: datasets.Dataset) -> np.ndarray:
    if data.user_ids is None:
        raise ValueError(
            f"privacy.unit='user' needs to know whose each row is, and {data.name!r} "
            "does not say; set data.path and data.user_column."
        )
    return data.user_ids
