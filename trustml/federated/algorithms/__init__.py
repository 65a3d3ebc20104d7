"""What clients do and what the server makes of it: algorithms, pure functions each.

| module | algorithms |
| --- | --- |
| `averaging` | FedAvg, FedProx, with any optimizer on clients and server |
| `server_optimizers` | FedOpt: Adam, Yogi, Adagrad, momentum, as the paper has them |
| `control` | SCAFFOLD, FedNova, FedDyn |
| `mime` | Mime, MimeLite |
| `fair` | q-FFL, AFL |
| `personal` | Ditto, pFedMe, FedRep, APFL |
| `clusters` | IFCA |
| `buffered` | FedBuff |

`base` says what an algorithm is.

Example::

    algorithm = averaging.fedavg(task.loss, optax.sgd(0.1), optax.sgd(1.0))
"""
