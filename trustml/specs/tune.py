"""Experiment 'tune': learning rates tried for one cell of a grid, and its seeds."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

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


def grid(
    partitions: Sequence[str],
    *,
    shared_rate: float,
    centralised_steps: int,
    prox: float = 0.01,
) -> Iterator[dict[str, Any]]:
    """Cells of FedNLP's comparison, as changes of a config for `sweep()`.

    Client x server optimizer, FedProx off and on, for each partition, and training in
    one place. The two cells of FedNLP's rule (AdamW on clients if FedOpt, SGD
    otherwise) are marked with its one client rate.

    Args:
      partitions: of `federated.partition`.
      shared_rate: client learning rate of that rule; one of `tune.client_rates`.
      centralised_steps: as many batches as the clients go through together.
      prox: mu, where FedProx is on.
    """
    rule = (("sgd", "sgd"), ("adamw", "adam"))
    for partition in partitions:
        for mu in (0.0, prox):
            for client in ("sgd", "momentum", "adamw"):
                for server in ("sgd", "momentum", "adam", "yogi"):
                    marked = (client, server) in rule and not mu
                    yield {
                        "experiment": "tune",
                        "federated.partition": partition,
                        "federated.prox": mu,
                        "optimizer.name": client,
                        "federated.server_optimizer": server,
                        "tune.shared_rate": shared_rate if marked else 0.0,
                    }
    for client in ("sgd", "momentum", "adamw"):
        yield {
            "experiment": "tune",
            "tune.centralised": True,
            "optimizer.name": client,
            "train.steps": centralised_steps,
            "train.log_every": 100,
        }
