"""The run without privacy that private runs are compared with.

Example::

    plain = baseline.of(config)         # `config.baseline` in place of its own settings
"""

import dataclasses
from typing import Any

from trustml import specs


def of(config: specs.RunConfig) -> specs.RunConfig:
    """The run without privacy, with the settings of `config.baseline`."""
    own, plain = config.baseline, config.without_privacy()

    def changed(part: Any, *fields: str) -> Any:
        values = {name: getattr(own, name) for name in fields}
        values = {name: value for name, value in values.items() if value is not None}
        return dataclasses.replace(part, **values)

    return dataclasses.replace(
        plain,
        train=changed(plain.train, "steps", "batch_size"),
        optimizer=changed(plain.optimizer, "learning_rate"),
        model=changed(plain.model, "dropout"),
    )
