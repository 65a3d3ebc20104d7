"""What a run is made of: frozen dataclasses that check their own static bounds.

One dataclass a section of the configuration (`sections`, `privacy`, `canary`,
`federated`, `selection`), and
`RunConfig` (`run`), which holds them and checks what binds two sections. A value out of
its bounds raises one sentence, when the dataclass is made. `trustml.config` makes them
from a config file.

Example::

    spec = specs.PrivacySpec(epsilon=8.0, delta=1e-6)
    run = specs.RunConfig(privacy=spec, train=specs.TrainSpec(steps=200))
"""

from trustml.specs.agreement import AgreementSpec
from trustml.specs.canary import CanarySpec
from trustml.specs.fairness import FairnessSpec
from trustml.specs.federated import FederatedSpec
from trustml.specs.generation import GenerationSpec
from trustml.specs.leak import LeakSpec
from trustml.specs.privacy import PrivacySpec
from trustml.specs.run import RunConfig
from trustml.specs.sections import (
    AttackSpec,
    AuditSpec,
    BaselineSpec,
    DataSpec,
    ModelSpec,
    OptimizerSpec,
    ReportSpec,
    TrainSpec,
)
from trustml.specs.selection import SelectionSpec
from trustml.specs.tune import TuneSpec

__all__ = [
    "AgreementSpec",
    "AttackSpec",
    "AuditSpec",
    "BaselineSpec",
    "CanarySpec",
    "DataSpec",
    "FairnessSpec",
    "FederatedSpec",
    "GenerationSpec",
    "LeakSpec",
    "ModelSpec",
    "OptimizerSpec",
    "PrivacySpec",
    "ReportSpec",
    "RunConfig",
    "SelectionSpec",
    "TrainSpec",
    "TuneSpec",
]
