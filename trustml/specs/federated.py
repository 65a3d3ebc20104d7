"""Who holds the data, who trains in a round, and what becomes of their messages."""

import dataclasses
import math

from trustml import _validate

PARTITIONS = (
    *("iid", "label_dirichlet", "quantity_dirichlet", "lognormal", "shards"),
    *("natural", "label_activity", "cluster"),
)
ALGORITHMS = (
    *("fedavg", "scaffold", "fednova", "feddyn", "mime", "mimelite"),
    *("qffl", "afl", "ditto", "pfedme", "apfl"),
)
SERVER_OPTIMIZERS = ("sgd", "momentum", "adam", "yogi", "adagrad")
SELECTIONS = (
    *("uniform", "fixed_size", "power", "capped_power", "log", "softmax"),
    *("threshold", "top_k", "stratified", "systematic", "power_of_choice", "oort"),
    "cyclic",
)
WEIGHTINGS = ("data", "uniform", "capped", "horvitz_thompson", "hajek")
RETENTIONS = ("keep_all", "fifo", "reservoir", "class_balanced")
ROBUST_RULES = ("median", "trimmed_mean", "krum", "multi_krum", "bulyan")
_ROWS = {  # attackers -> messages that a rule needs to bear them
    "median": lambda f: 2 * f + 1,
    "trimmed_mean": lambda f: 2 * f + 1,
    "krum": lambda f: 2 * f + 3,
    "multi_krum": lambda f: 2 * f + 3,
    "bulyan": lambda f: 4 * f + 3,
}
COMPRESSIONS = ("quantize", "top_k", "sign")
AVAILABILITIES = ("bernoulli", "diurnal")

_UNIFORM = ("scaffold", "feddyn", "qffl", "afl")
_NO_SERVER = ("feddyn", "qffl")  # their server's step is a part of their rule
_MORE_THAN_DIRECTIONS = ("fednova", "qffl", "afl")
_REMEMBERED = ("scaffold", "feddyn")  # clients' memories have to add up to theirs
_SGD_ONLY = ("scaffold", "fednova", "qffl", "pfedme", "apfl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FederatedSpec:
    """Experiment 'federate'; see `trustml.federated`.

    A round is a step: `train.steps` rounds, batches of `train.batch_size` examples of a
    client. `optimizer` is the clients'; its schedule and warm-up count rounds.

    Attributes:
      partition: one of `PARTITIONS`; 'natural' takes those who wrote the data
        (`data.user_column`); 'label_activity' gives half of the labels to a tenth of
        the clients; 'cluster' mixes clusters of features as 'label_dirichlet' does
        labels (`partitions.features`).
      clients: number of clients of a made partition.
      alpha: concentration of the labels ('label_dirichlet', as a multiple of the number
        of labels times their share), of clusters ('cluster', likewise), or of the sizes
        ('quantity_dirichlet').
      clusters: of 'cluster'.
      size_cv: coefficient of variation of the sizes ('lognormal', 'label_dirichlet',
        'cluster'); 0 = equal sizes.
      shards: of each client ('shards').
      algorithm: one of `ALGORITHMS`.
      prox: mu of the proximal term ('fedavg', then FedProx, and 'fednova').
      dyn_alpha: alpha of 'feddyn'.
      q: of 'qffl'.
      pull: lam of 'ditto' and 'pfedme'.
      fair_learning_rate: of 'afl'.
      server_optimizer: one of `SERVER_OPTIMIZERS`; 'adam', 'yogi', 'adagrad' as FedOpt
        has them.
      server_learning_rate: of it.
      server_momentum: of 'momentum'.
      selection: one of `SELECTIONS`.
      cohort: clients of a round, expected or exact.
      beta: exponent of 'power' and 'capped_power'.
      cap: no client is selected more often than this many times the mean rate
        ('capped_power').
      threshold: examples that a client needs to be selected ('threshold').
      temperature: of 'softmax', in units of the median size.
      weighting: one of `WEIGHTINGS`.
      weight_cap: examples that count in full ('capped').
      epochs: passes of a client over its examples, in a round.
      local_steps: where positive, steps of every client, in place of epochs.
      max_examples: of a client, in a round; 0 = all it has.
      periods: of the continual setting, in which data arrive; 1 = all at once.
      retention: one of `RETENTIONS`, what a client keeps.
      storage: examples that it can keep; needed but for 'keep_all'.
      robust: '' or one of `ROBUST_RULES`, in place of the mean; every client counts
        the same, so `weighting` is 'uniform'.
      malicious: share of a cohort that the rule is to bear, in [0, 0.5), rounded up to
        whole clients.
      compression: '' or one of `COMPRESSIONS`.
      bits: of 'quantize'.
      keep: share of the coordinates that 'top_k' sends.
      dropout: probability that a selected client trains for nothing.
      availability: '' (always) or one of `AVAILABILITIES`, who can be reached.
      reachable: mean chance of it.
      swing: half of what that chance moves by in a day ('diurnal').
      day: rounds of a day.
      step_cv: coefficient of variation of the clients' seconds per step, whose mean
        is 1.
      deadline: virtual seconds after which nobody is heard; 0 = none.
      over_selection: how many times `cohort` is asked; the first `cohort` of them to be
        done are heard.
      held_out: share of each client's examples that nobody trains on; the report's
        accuracies of clients are then on these. 0 = none.
      lanes: clients trained at once on one device; 0 = found out at the start.
      group: lanes computed together; 0 = all.
      exact: sums in integers, equal to the bit on any layout; needs `group`, and goes
        without privacy.
    """

    partition: str = "label_dirichlet"
    clients: int = 100
    alpha: float = 0.5
    clusters: int = 10
    size_cv: float = 0.0
    shards: int = 2
    algorithm: str = "fedavg"
    prox: float = 0.0
    dyn_alpha: float = 0.1
    q: float = 1.0
    pull: float = 0.1
    fair_learning_rate: float = 0.1
    server_optimizer: str = "sgd"
    server_learning_rate: float = 1.0
    server_momentum: float = 0.9
    selection: str = "uniform"
    cohort: int = 10
    beta: float = 0.5
    cap: float = 4.0
    threshold: int = 1
    temperature: float = 1.0
    weighting: str = "data"
    weight_cap: float = 100.0
    epochs: int = 1
    local_steps: int = 0
    max_examples: int = 0
    periods: int = 1
    retention: str = "keep_all"
    storage: int = 0
    robust: str = ""
    malicious: float = 0.1
    compression: str = ""
    bits: int = 8
    keep: float = 0.1
    dropout: float = 0.0
    availability: str = ""
    reachable: float = 0.7
    swing: float = 0.3
    day: int = 24
    step_cv: float = 0.0
    deadline: float = 0.0
    over_selection: float = 1.0
    held_out: float = 0.0
    lanes: int = 0
    group: int = 0
    exact: bool = False

    def __post_init__(self):
        for field, known in (
            ("partition", PARTITIONS),
            ("algorithm", ALGORITHMS),
            ("server_optimizer", SERVER_OPTIMIZERS),
            ("selection", SELECTIONS),
            ("weighting", WEIGHTINGS),
            ("retention", RETENTIONS),
        ):
            _validate.one_of(f"federated.{field}", getattr(self, field), known)
        for field, known in (
            ("robust", ROBUST_RULES),
            ("compression", COMPRESSIONS),
            ("availability", AVAILABILITIES),
        ):
            if value := getattr(self, field):
                cure = "'' does without"
                _validate.one_of(f"federated.{field}", value, known, cure)
        lows = {"clients": 1, "shards": 1, "cohort": 1, "threshold": 1, "epochs": 1}
        lows |= {"local_steps": 0, "max_examples": 0, "periods": 1, "storage": 0}
        lows |= {"bits": 1, "lanes": 0, "group": 0, "day": 1, "clusters": 1}
        for field, low in lows.items():
            value = getattr(self, field)
            _validate.integer_at_least(f"federated.{field}", value, low)
        for field in ("alpha", "dyn_alpha", "fair_learning_rate", "cap", "temperature"):
            _validate.positive(f"federated.{field}", getattr(self, field))
        for field in ("server_learning_rate", "weight_cap"):
            _validate.positive(f"federated.{field}", getattr(self, field))
        for field in ("prox", "q", "pull", "size_cv", "beta", "swing", "step_cv"):
            _validate.non_negative(f"federated.{field}", getattr(self, field))
        momentum = self.server_momentum
        _validate.in_half_open_interval("federated.server_momentum", momentum, 0, 1)
        cure = "the share of clients that may lie"
        name = "federated.malicious"
        _validate.in_half_open_interval(name, self.malicious, 0, 0.5, cure)
        _validate.in_half_open_interval("federated.dropout", self.dropout, 0, 1)
        _validate.non_negative("federated.deadline", self.deadline)
        if not 0 < self.reachable <= 1:
            bound, cure = "must be in (0, 1]", "it is a probability"
            _validate.fail("federated.reachable", self.reachable, bound, cure)
        if not 1 <= self.over_selection < float("inf"):
            bound, cure = "must be at least 1", "1.3 asks for 30% more than are needed"
            _validate.fail("federated.over_selection", self.over_selection, bound, cure)
        _validate.in_half_open_interval("federated.held_out", self.held_out, 0, 1)
        if not 0 < self.keep <= 1:
            _validate.fail("federated.keep", self.keep, "must be in (0, 1]", "try 0.1")
        if self.partition != "natural":
            self.check_clients(self.clients)
        if self.retention == "keep_all" and self.storage:
            bound = "has no effect on federated.retention='keep_all'"
            cure = "set it to 0, or the retention to 'fifo'"
            _validate.fail("federated.storage", self.storage, bound, cure)
        if self.retention != "keep_all" and not self.storage:
            bound = f"says nothing of what federated.retention={self.retention!r} keeps"
            _validate.fail("federated.storage", 0, bound, "50 examples, for instance")
        if self.prox and self.algorithm not in ("fedavg", "fednova"):
            bound = f"has no effect on federated.algorithm={self.algorithm!r}"
            _validate.fail("federated.prox", self.prox, bound, "set it to 0")
        if self.algorithm in _UNIFORM and self.weighting != "uniform":
            bound = f"does not go with federated.algorithm={self.algorithm!r}"
            cure = "its mean is that of clients: set it to 'uniform'"
            _validate.fail("federated.weighting", self.weighting, bound, cure)
        server = self.server_optimizer, self.server_learning_rate
        if self.algorithm in _NO_SERVER and server != ("sgd", 1.0):
            bound = f"has no effect on federated.algorithm={self.algorithm!r}"
            name = "optimizer" if server[0] != "sgd" else "learning_rate"
            cure = "set it to " + ("'sgd'" if server[0] != "sgd" else "1")
            value = getattr(self, f"server_{name}")
            _validate.fail(f"federated.server_{name}", value, bound, cure)
        for field in ("compression", "robust"):
            if getattr(self, field) and self.algorithm in _MORE_THAN_DIRECTIONS:
                bound = (
                    "takes a message for one direction, and that of "
                    f"federated.algorithm={self.algorithm!r} holds a figure beside it"
                )
                _validate.fail(
                    f"federated.{field}", getattr(self, field), bound, "set it to ''"
                )
        if self.robust:
            self._check_robust()
        if self.robust and self.algorithm in _REMEMBERED:
            bound = (
                "takes of messages what clients remember in full with "
                f"federated.algorithm={self.algorithm!r}"
            )
            _validate.fail("federated.robust", self.robust, bound, "set it to ''")
        if self.compression == "quantize" and self.bits > 16:
            bound = "must be at most 16, which are quantised"
            _validate.fail("federated.bits", self.bits, bound, "set compression=''")
        if self.exact and not self.group:
            cure = "set it to 1: part of what fixes the bits"
            _validate.fail("federated.group", 0, "leaves exact mode open", cure)

    def _check_robust(self) -> None:
        least, rule = _ROWS[self.robust](self.attackers), self.robust
        if self.cohort < least:
            bound = (
                f"is fewer than the {least} clients that federated.robust={rule!r} "
                f"needs to bear {self.attackers} (federated.malicious="
                f"{self.malicious:g})"
            )
            cure = "raise it, or lower federated.malicious"
            _validate.fail("federated.cohort", self.cohort, bound, cure)
        if self.weighting != "uniform":
            bound = f"has no effect on federated.robust={rule!r}"
            cure = "every client counts the same: set it to 'uniform'"
            _validate.fail("federated.weighting", self.weighting, bound, cure)

    @property
    def attackers(self) -> int:
        """Clients of a cohort that a robust rule is to bear."""
        return math.ceil(self.malicious * self.cohort - 1e-9)

    @property
    def asked(self) -> int:
        """Clients that are selected in a round, for `cohort` of them to be heard."""
        return math.ceil(self.cohort * self.over_selection)

    def check_clients(self, clients: int) -> None:
        """Raises a `ValueError` where so many clients are too few."""
        if self.asked > clients:
            field = "cohort" if self.cohort > clients else "over_selection"
            value = getattr(self, field)
            what = "" if field == "cohort" else f"asks {self.asked} clients and "
            bound = f"{what}exceeds the {clients} clients there are"
            cure = "lower it, or raise federated.clients"
            _validate.fail(f"federated.{field}", value, bound, cure)

    @property
    def needs_sgd(self) -> bool:
        """Whether the algorithm prescribes plain SGD on the clients."""
        return self.algorithm in _SGD_ONLY
