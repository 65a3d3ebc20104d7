"""Which rules of selection are compared, on which clients, and what counts as there."""

import dataclasses

from trustml import _validate

ARMS = ("uniform", "capped", "log", "threshold", "activity", "unbiased", "hajek")
SETTINGS = ("static_all", "static_capped", "continual")
ARRIVALS = ("even", "scattered", "ordered")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionSpec:
    """Experiment 'selection_study'; `federated` says who the clients are.

    Every arm trains in every setting from every seed. Arms differ in who is selected
    and how they count:

    | arm | p_k | weights |
    | --- | --- | --- |
    | uniform | the same | data |
    | capped | n^beta, at most `federated.cap` times the mean | data |
    | log | log(1 + n) | data |
    | threshold | the same for n >= `federated.threshold`, else 0 | data |
    | activity | n | data |
    | unbiased | n | inverse probability (Horvitz-Thompson) |
    | hajek | n | inverse probability, over their sum |

    Attributes:
      seeds: of partition, arrivals, selection, order and initialization.
      arms: of `ARMS`; 'uniform', which the others are compared with, among them.
      settings: of `SETTINGS`: all data from the start, what storage leaves at the end
        from the start, or data that arrive over `federated.periods` and are stored as
        `federated.retention` says. 'static_all' is the reference and among them.
      arrival: one of `ARRIVALS`, how the data of a client arrive: at an even pace in
        an order drawn for the seed ('even') or in that of the data ('ordered'), or each
        example at a time of its own ('scattered').
      target: accuracy that counts as reached.
      tolerance: how far below the end of the static run counts as caught up.
      correlated_seeds: seeds for which all is done once more with clients whose labels
        go with their activity; 0 leaves it out.
    """

    seeds: int = 10
    arms: tuple[str, ...] = ("uniform", "capped", "threshold", "activity", "unbiased")
    settings: tuple[str, ...] = SETTINGS
    arrival: str = "even"
    target: float = 0.6
    tolerance: float = 0.01
    correlated_seeds: int = 0

    def __post_init__(self):
        _validate.integer_at_least("selection.seeds", self.seeds, 1, "10 are usual")
        for field, known, needed in (
            ("arms", ARMS, "uniform"),
            ("settings", SETTINGS, "static_all"),
        ):
            values = getattr(self, field)
            for value in values:
                _validate.one_of(f"selection.{field}", value, known)
            if len(set(values)) != len(values):
                bound = "repeats one"
                _validate.fail(f"selection.{field}", values, bound, "name each once")
            if needed not in values:
                bound = f"lacks {needed!r}, which the others are compared with"
                _validate.fail(f"selection.{field}", values, bound, "add it")
        _validate.one_of("selection.arrival", self.arrival, ARRIVALS)
        _validate.in_open_interval("selection.target", self.target, 0, 1)
        _validate.non_negative("selection.tolerance", self.tolerance, "0.01 is usual")
        count, cure = self.correlated_seeds, "0 leaves it out"
        _validate.integer_at_least("selection.correlated_seeds", count, 0, cure)
        if count > self.seeds:
            bound = f"exceeds selection.seeds={self.seeds}"
            _validate.fail("selection.correlated_seeds", count, bound, "lower it")
