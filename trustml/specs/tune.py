"""Experiment 'tune': learning rates tried for one cell of a grid, and its seeds."""

import dataclasses

from trustml import _validate


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneSpec:
    """What experiment 'tune' tries, the same for every cell of a grid.

    Attributes:
      client_rates: learning rates of the clients' optimizer.
      server_rates: of the server's; all pairs are tried.
      seeds: runs at the best pair, whose mean and interval are reported.
      shared_rate: one of `client_rates` at which the seeds are run besides, as a rule
        that prescribes one rate for all would have it; 0 = not.
      centralised: train in one place, without a server.
    """

    client_rates: tuple[float, ...] = (0.001, 0.005, 0.03, 0.2, 1.0)
    server_rates: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: int = 3
    shared_rate: float = 0.0
    centralised: bool = False

    def __post_init__(self):
        for field in ("client_rates", "server_rates"):
            rates = getattr(self, field)
            for rate in rates:
                _validate.positive(f"tune.{field}", rate)
            if not rates or len(set(rates)) < len(rates):
                bound = "must name one rate or more, each once"
                _validate.fail(f"tune.{field}", rates, bound, "try (0.01, 0.1)")
        _validate.integer_at_least("tune.seeds", self.seeds, 1, "3 is usual")
        if self.shared_rate and self.shared_rate not in self.client_rates:
            bound = f"is none of tune.client_rates={self.client_rates}"
            _validate.fail("tune.shared_rate", self.shared_rate, bound, "add it there")
