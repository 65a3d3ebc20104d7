"""One run: its sections, and what binds two of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from trustml import _validate
from trustml.specs.agreement import AgreementSpec
from trustml.specs.canary import CanarySpec
from trustml.specs.fairness import FairnessSpec
from trustml.specs.federated import FederatedSpec
from trustml.specs.generation import GenerationSpec
from trustml.specs.leak import LeakSpec
from trustml.specs.privacy import PrivacySpec
from trustml.specs.sections import (
    WITH_USERS,
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

EXPERIMENTS = (
    *("train", "trust_report", "compare"),
    *("membership", "canary_extraction", "audit"),
    *("federate", "centralised", "selection_study", "tune"),
    *("prediction_sensitivity", "intrinsic_extrinsic", "fairness"),
    "generation",
)
_ALL_KINDS = ("federate", "centralised", "tune")  # for tags, spans and sentences, too


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, completely; every bound that needs no data has been checked.

    Attributes:
      experiment: one of `EXPERIMENTS`.
      seed: of initialization, dropout and data order; never of the noise.
      data: see `DataSpec`.
      model: see `ModelSpec`.
      optimizer: see `OptimizerSpec`.
      privacy: see `PrivacySpec`.
      train: see `TrainSpec`.
      report: see `ReportSpec`.
      baseline: see `BaselineSpec`.
      attack: see `AttackSpec`.
      audit: see `AuditSpec`.
      canary: see `CanarySpec`.
      federated: see `FederatedSpec`.
      selection: see `SelectionSpec`.
      tune: see `TuneSpec`.
      leak: see `LeakSpec`.
      agreement: see `AgreementSpec`.
      fairness: see `FairnessSpec`.
      generation: see `GenerationSpec`.
    """

    experiment: str = "train"
    seed: int = 0
    data: DataSpec = dataclasses.field(default_factory=DataSpec)
    model: ModelSpec = dataclasses.field(default_factory=ModelSpec)
    optimizer: OptimizerSpec = dataclasses.field(default_factory=OptimizerSpec)
    privacy: PrivacySpec = dataclasses.field(default_factory=PrivacySpec)
    train: TrainSpec = dataclasses.field(default_factory=TrainSpec)
    report: ReportSpec = dataclasses.field(default_factory=ReportSpec)
    baseline: BaselineSpec = dataclasses.field(default_factory=BaselineSpec)
    attack: AttackSpec = dataclasses.field(default_factory=AttackSpec)
    audit: AuditSpec = dataclasses.field(default_factory=AuditSpec)
    canary: CanarySpec = dataclasses.field(default_factory=CanarySpec)
    federated: FederatedSpec = dataclasses.field(default_factory=FederatedSpec)
    selection: SelectionSpec = dataclasses.field(default_factory=SelectionSpec)
    tune: TuneSpec = dataclasses.field(default_factory=TuneSpec)
    leak: LeakSpec = dataclasses.field(default_factory=LeakSpec)
    agreement: AgreementSpec = dataclasses.field(default_factory=AgreementSpec)
    fairness: FairnessSpec = dataclasses.field(default_factory=FairnessSpec)
    generation: GenerationSpec = dataclasses.field(default_factory=GenerationSpec)

    def __post_init__(self):
        _validate.one_of("experiment", self.experiment, EXPERIMENTS)
        _validate.integer_at_least("seed", self.seed, 0)
        if self.optimizer.warmup_steps >= self.train.steps:
            bound = f"must be < train.steps={self.train.steps}"
            value = self.optimizer.warmup_steps
            _validate.fail(
                "optimizer.warmup_steps", value, bound, "shorten the warm-up"
            )
        if self.baseline.steps and self.optimizer.warmup_steps >= self.baseline.steps:
            bound = f"must be > optimizer.warmup_steps={self.optimizer.warmup_steps}"
            cure = "shorten the warm-up or train the baseline for longer"
            _validate.fail("baseline.steps", self.baseline.steps, bound, cure)
        most, chunk = self.train.physical_batch_size, self.privacy.microbatch_size
        if most and chunk > most:
            bound = f"must be <= train.physical_batch_size={most}"
            cure = "0 takes the whole physical batch at once"
            _validate.fail("privacy.microbatch_size", chunk, bound, cure)
        if self.privacy.unit == "user":
            self._check_users()
        if self.optimizer.name == "adam_bc":
            self._check_adam_bc()
        if self.experiment == "compare":
            self._check_compare()
        if self.experiment == "membership":
            self._check_membership()
        if self.experiment == "audit":
            self._check_audit()
        if self.experiment == "canary_extraction":
            self._check_canary()
        if self.experiment in ("federate", "tune"):
            self._check_federate()
        if self.experiment == "selection_study":
            self._check_federate()
            self._check_selection()
        if self.experiment == "centralised":
            self._check_unread(
                {
                    "train.ema_decay": self.train.ema_decay,
                    "train.physical_batch_size": self.train.physical_batch_size,
                }
            )
        if self.experiment in ("centralised", "tune") and self.privacy.enabled:
            bound = f"does not go with experiment={self.experiment!r}"
            _validate.fail("privacy.enabled", True, bound, "set it to False")
        if self.data.kind != "classification" and self.experiment not in _ALL_KINDS:
            bound = f"is no classification, which experiment={self.experiment!r} needs"
            cure = f"set experiment to one of {', '.join(_ALL_KINDS)}"
            _validate.fail("data.name", self.data.name, bound, cure)
        if self.model.name == "language_model":
            self._check_language_model()
        if self.model.cache_features:
            self._check_cache()
        if self.experiment == "trust_report":
            self._check_trust_report()
        elif self.privacy.enabled and not self._has_budgets_of_its_own():
            if self.privacy.epsilon is None and self.privacy.noise_multiplier is None:
                bound = "and privacy.noise_multiplier=None leave the noise open"
                cure = "set exactly one, or privacy.enabled=False"
                _validate.fail("privacy.epsilon", None, bound, cure)

    def without_privacy(self) -> "RunConfig":
        """The same run as experiment 'train' without noise or clipping."""
        privacy = dataclasses.replace(
            self.privacy, enabled=False, epsilon=None, noise_multiplier=None
        )
        optimizer = self.optimizer
        if optimizer.name == "adam_bc":  # without noise nothing is to be corrected
            optimizer = dataclasses.replace(optimizer, name="adam")
        return dataclasses.replace(
            self, experiment="train", privacy=privacy, optimizer=optimizer
        )

    def _check_users(self):
        if not self.data.user_column:
            bound = "needs data.user_column"
            cure = "name the column that says whose each row is, of data.path"
            _validate.fail("privacy.unit", "user", bound, cure)
        if self.data.limit and self.privacy.enabled:  # else nothing is promised
            bound = (
                "is one draw among the examples of all users, so that one user changes "
                "which examples another one keeps"
            )
            cure = "set it to 0, and lower privacy.max_examples_per_user instead"
            _validate.fail("data.limit", self.data.limit, bound, cure)

    def _check_adam_bc(self):
        field, cure = "optimizer.name", "choose adam"
        if not self.privacy.enabled:
            bound = "corrects for noise, and privacy.enabled=False adds none"
            _validate.fail(field, "adam_bc", bound, cure)
        moving = []
        if self.privacy.noise_schedule != "constant":
            moving.append(f"privacy.noise_schedule={self.privacy.noise_schedule!r}")
        if self.privacy.rule == "quantile":
            moving.append("privacy.rule='quantile'")
        if self.privacy.bands > 1:
            moving.append(f"privacy.bands={self.privacy.bands}")
        if moving:
            bound = f"needs one noise throughout, and {' and '.join(moving)} changes it"
            _validate.fail(field, "adam_bc", bound, cure)

    def _check_compare(self):
        cure = "experiment='compare' sets eDP-SGD beside exact clipping"
        if not self.privacy.enabled:
            _validate.fail("privacy.enabled", False, "leaves nothing to compare", cure)
        if not self.privacy.group_size:
            field, size = "privacy.group_size", self.train.batch_size // 2
            bound = f"must be the size of a micro-batch, {size} for example"
            _validate.fail(field, 0, bound, cure)
        if self.privacy.noise_multiplier is None:
            bound = "must be given, so that both have the same noise"
            cure = "set it and leave privacy.epsilon=None"
            _validate.fail("privacy.noise_multiplier", None, bound, cure)

    def _has_budgets_of_its_own(self) -> bool:
        if self.experiment == "audit":
            return True
        return self.experiment == "membership" and bool(self.attack.epsilons)

    def _check_audit(self):
        privacy, where = self.privacy, "experiment='audit'"
        if not privacy.enabled:
            bound = f"leaves {where} no promise to audit"
            _validate.fail("privacy.enabled", False, bound, "set it to True")
        for field in ("epsilon", "noise_multiplier"):
            value = getattr(privacy, field)
            if value is not None:
                bound = f"has no effect on {where}"
                cure = f"set audit.epsilons, the budgets it audits, and {field}=None"
                _validate.fail(f"privacy.{field}", value, bound, cure)
        self._check_canaries(where)

    def _check_canaries(self, where: str):
        """What gradient canaries can be read through; `where` asks for them."""
        privacy, cure = self.privacy, "audit a run without it"
        for field, usual in (
            ("sampler", "poisson"),
            ("unit", "example"),
            ("noise_schedule", "constant"),
            ("bands", 1),
            ("group_size", 0),
        ):
            value = getattr(privacy, field)
            if value != usual:
                bound = f"does not go with {where}, whose canaries need {usual!r}"
                _validate.fail(f"privacy.{field}", value, bound, cure)
        if privacy.rule == "quantile":
            bound = f"moves the clip norm that {where} measures canaries by"
            _validate.fail("privacy.rule", privacy.rule, bound, "use 'flat'")

    def _check_shadow_models(self):
        """What the shadow models of a report cannot imitate."""
        cure = "set report.shadow_models=0, or train without it"
        for field, value, usual in (
            ("train.ema_decay", self.train.ema_decay, 0.0),
            ("privacy.unit", self.privacy.unit, "example"),
            ("privacy.group_size", self.privacy.group_size, 0),
        ):
            if value != usual:
                bound = f"is not done to the {self.report.shadow_models} shadow models"
                _validate.fail(field, value, bound, cure)

    def _check_membership(self):
        privacy = self.privacy
        if self.attack.epsilons:
            cure = "set attack.epsilons=() to attack one set of models"
            bound = f"contradicts attack.epsilons={self.attack.epsilons}"
            if not privacy.enabled:
                _validate.fail("privacy.enabled", False, bound, cure)
            for field in ("epsilon", "noise_multiplier"):
                value = getattr(privacy, field)
                if value is not None:
                    _validate.fail(f"privacy.{field}", value, bound, cure)
        self._check_references()
        self._check_idle()

    def _check_references(self):
        """Budgets that the design can serve, before any model is trained."""
        spec, paired = self.attack, self.attack.design == "paired"
        least = 4 if paired else 3
        if spec.num_models < least:
            bound = f"leaves no references; it must be >= {least}"
            _validate.fail("attack.num_models", spec.num_models, bound, "64 is usual")
        for budget in spec.references:
            if paired and budget % 2:
                bound = f"has {budget}, and references come in whole pairs"
                cure = "give even numbers, or attack.design='independent'"
                _validate.fail("attack.references", spec.references, bound, cure)

    def _check_idle(self):
        """What shadow models do without."""
        if self.privacy.unit != "example":
            bound = f"does not go with experiment={self.experiment!r}"
            cure = "its models learn from single examples: set it to 'example'"
            _validate.fail("privacy.unit", self.privacy.unit, bound, cure)
        self._check_unread(
            {
                "train.ema_decay": self.train.ema_decay,
                "train.eval_every": self.train.eval_every,
                "train.physical_batch_size": self.train.physical_batch_size,
                "privacy.group_size": self.privacy.enabled and self.privacy.group_size,
            }
        )

    def _check_canary(self):
        self._check_idle()
        if self.model.name != "gru":
            bound = "is not what this experiment attacks"
            _validate.fail("model.name", self.model.name, bound, "set it to 'gru'")
        if self.data.vocabulary == "pretrained":
            bound = "cuts words, and a code is made of single tokens"
            _validate.fail("data.vocabulary", "pretrained", bound, "use 'hashed'")
        size = len(self.canary.words) + self.canary.length
        if size > self.data.max_length:
            bound = f"cuts the {size} words of the canary"
            _validate.fail("data.max_length", self.data.max_length, bound, "raise it")
        private = "dp_sgd" in self.canary.defences
        if private != self.privacy.enabled:
            bound = f"contradicts canary.defences={self.canary.defences}"
            cure = f"set it to {private}, or change the defences"
            _validate.fail("privacy.enabled", self.privacy.enabled, bound, cure)

    def _check_federate(self):
        studied = self.experiment == "selection_study"
        if self.federated.periods > self.train.steps and not studied:
            bound = f"must be <= train.steps={self.train.steps}, the rounds there are"
            value = self.federated.periods
            _validate.fail("federated.periods", value, bound, "train for longer")
        self._check_unread(
            {
                "train.ema_decay": self.train.ema_decay,
                "train.physical_batch_size": self.train.physical_batch_size,
                "privacy.group_size": self.privacy.group_size,
                "privacy.microbatch_size": self.privacy.microbatch_size,
            }
        )
        spec = self.federated
        known = self.data.user_column or self.data.name in WITH_USERS
        if spec.partition == "natural" and not known:
            bound = f"needs to know whose the rows of data.name={self.data.name!r} are"
            cure = f"set data.user_column of data.path, or take {', '.join(WITH_USERS)}"
            _validate.fail("federated.partition", "natural", bound, cure)
        if spec.needs_sgd and self.optimizer.name != "sgd":
            bound = f"is not what federated.algorithm={spec.algorithm!r} is made of"
            _validate.fail("optimizer.name", self.optimizer.name, bound, "set it 'sgd'")
        if spec.needs_sgd and (decay := self.optimizer.weight_decay):
            bound = f"has no effect on federated.algorithm={spec.algorithm!r}"
            _validate.fail("optimizer.weight_decay", decay, bound, "set it to 0")
        if spec.exact and spec.algorithm == "qffl":
            bound = "sends powers of losses, which integers have no bound for"
            cure = "set federated.exact=False"
            _validate.fail("federated.algorithm", "qffl", bound, cure)
        if spec.exact and spec.robust not in ("", "median"):
            bound = "is not equal to the bit on every layout, as federated.exact=True"
            cure = "set it to 'median', or federated.exact=False"
            _validate.fail("federated.robust", spec.robust, bound, cure)
        if self.privacy.enabled:
            self._check_private_federation()

    def _check_unread(self, fields: Mapping[str, Any]):
        for field, value in fields.items():
            if value:
                bound = f"has no effect on experiment={self.experiment!r}"
                _validate.fail(field, value, bound, "set it to 0")

    def _check_language_model(self):
        if self.experiment != "selection_study":
            bound = f"predicts tokens, and experiment={self.experiment!r} wants labels"
            cure = "choose another model"
            _validate.fail("model.name", "language_model", bound, cure)

    def _check_selection(self):
        spec, where = self.federated, "experiment='selection_study'"
        for field, value, usual in (
            ("privacy.enabled", self.privacy.enabled, False),
            ("federated.algorithm", spec.algorithm, "fedavg"),
            ("federated.robust", spec.robust, ""),
            ("federated.compression", spec.compression, ""),
            ("federated.dropout", spec.dropout, 0.0),
            ("federated.availability", spec.availability, ""),
            ("federated.deadline", spec.deadline, 0.0),
            ("federated.over_selection", spec.over_selection, 1.0),
            ("federated.held_out", spec.held_out, 0.0),
            ("federated.local_steps", spec.local_steps, 0),
        ):
            if value != usual:
                bound = f"does not go with {where}, which compares selection alone"
                _validate.fail(field, value, bound, f"set it to {usual!r}")
        if self.selection.correlated_seeds and spec.partition == "natural":
            bound = "deals the data anew, and federated.partition='natural' does not"
            count = self.selection.correlated_seeds
            _validate.fail("selection.correlated_seeds", count, bound, "set it to 0")

    def _check_private_federation(self):
        spec = self.federated
        self._check_client_promise()
        if spec.weighting in ("data", "hajek"):
            bound = "has no sensitivity: one client's share depends on the others'"
            cure = "set it to 'uniform' or 'capped'"
            _validate.fail("federated.weighting", spec.weighting, bound, cure)
        for field, usual in (("deadline", 0.0), ("over_selection", 1.0)):
            if (value := getattr(spec, field)) != usual and not spec.local_steps:
                bound = "lets the number of its examples decide if a client is heard"
                cure = f"set federated.local_steps, or federated.{field}={usual:g}"
                _validate.fail(f"federated.{field}", value, bound, cure)
        if spec.exact:
            bound = "rounds messages after they are clipped, beyond their sensitivity"
            cure = "set it to False, or privacy.enabled=False"
            _validate.fail("federated.exact", True, bound, cure)
        if spec.robust:
            bound = "has no sensitivity, which privacy.enabled=True needs"
            _validate.fail("federated.robust", spec.robust, bound, "leave it ''")
        if spec.algorithm not in ("fedavg", "ditto", "pfedme", "apfl"):
            bound = "tells the server more than one clipped message a client"
            cure = "set it to 'fedavg', or privacy.enabled=False"
            _validate.fail("federated.algorithm", spec.algorithm, bound, cure)

    def _check_client_promise(self):
        """What changes the promise or the noise of examples changes none of clients."""
        relation = self.privacy.relation
        fixed = self.federated.selection == "fixed_size"
        if relation != "add_or_remove_one" and not (
            fixed and relation == "replace_one"
        ):
            bound = (
                "is not what is promised to clients, which follows from "
                f"federated.selection={self.federated.selection!r}"
            )
            cure = "set it to 'add_or_remove_one'; the report says which holds"
            _validate.fail("privacy.relation", relation, bound, cure)
        default = PrivacySpec(enabled=False)
        if self.privacy.unit == "user" and self.federated.partition != "natural":
            bound = (
                "is not what is promised: federated.partition="
                f"{self.federated.partition!r} deals the rows of one user to several "
                "clients, and the noise covers one client"
            )
            cure = "set federated.partition='natural', or leave it 'example'"
            _validate.fail("privacy.unit", "user", bound, cure)
        for name in (
            "max_examples_per_user",
            "clip_quantile",
            "rule",
            "method",
            "noise_schedule",
            "bands",
            "grid_bits",
            "sampler",
        ):
            value, usual = getattr(self.privacy, name), getattr(default, name)
            if value != usual:
                bound = f"has no effect on experiment={self.experiment!r}"
                cure = f"set it to {usual!r}, and see `federated` for what there is"
                _validate.fail(f"privacy.{name}", value, bound, cure)
        if self.optimizer.name == "adam_bc":
            bound = "corrects for noise that clients do not see"
            _validate.fail("optimizer.name", "adam_bc", bound, "choose another")

    def _check_cache(self):
        chosen = self.privacy.trainable
        heads = all(glob.startswith(("classifier", "wide")) for glob in chosen)
        if not (chosen and heads):
            bound = "trains the encoder, whose features model.cache_features=True keeps"
            cure = "set it to ('classifier/*', 'wide/*'), or do not keep them"
            _validate.fail("privacy.trainable", chosen, bound, cure)
        if self.train.augmentation:
            bound = "changes texts whose features model.cache_features=True keeps"
            _validate.fail(
                "train.augmentation", self.train.augmentation, bound, "set it to ''"
            )

    def _check_trust_report(self):
        for field in ("privacy.epsilon", "privacy.noise_multiplier"):
            value = getattr(self.privacy, field.removeprefix("privacy."))
            if value is not None:
                bound = "has no effect on experiment='trust_report'"
                cure = f"set report.epsilons, the budgets it compares, and {field}=None"
                _validate.fail(field, value, bound, cure)
        if not self.privacy.enabled and self.report.epsilons:
            bound = f"contradicts report.epsilons={self.report.epsilons}"
            cure = "set report.epsilons=() to compare nothing"
            _validate.fail("privacy.enabled", False, bound, cure)
        if self.report.shadow_models:
            self._check_shadow_models()
        if self.report.audit_canaries and self.report.epsilons:
            self._check_canaries(f"report.audit_canaries={self.report.audit_canaries}")
