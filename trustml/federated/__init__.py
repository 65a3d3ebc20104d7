"""Federated learning: a million ragged clients, vmapped, on one device or many.

    store -> selection -> cohort -> schedule -> lanes -> aggregation -> server

The names to know:

`store.from_arrays`        examples of all clients in flat columns, with offsets
`selection.capped_power`   which clients take part in a round, and what that is worth
`averaging.fedavg`         what clients do, and what the server makes of it
`chain.chain`              clip, compress, sum securely or robustly, add noise
`simulation.run`           round after round

Example::

    held = store.from_arrays({'x': x, 'label': y}, clients=who)
    algorithm = averaging.fedavg(task.loss, optax.sgd(0.1), optax.sgd(1.0))
    for number, state, info in simulation.run(
        params, held, algorithm, selection.uniform(20), rounds=100, batch_size=10,
        jit=jax.jit,
    ):
        ...                                                    # state.server.params

Who holds what: `partitions` (made), `populations`, `imports`, `fednlp` (read),
`timeline` (over time), `availability`, `stragglers`. What is optimised and promised:
`weighting`, `objective`, `user_privacy`. How it runs: `order` and `visits` (rows of a
visit), `feed` (data on the device or streamed), `schedule`, `lanes`, `sweep`, `rounds`.
Other algorithms: `control` (SCAFFOLD, FedNova, FedDyn), `mime`, `fair` (q-FFL, AFL),
`personal` (Ditto, pFedMe, FedRep, APFL), `clusters` (IFCA), `buffered` (FedBuff). What
it is like for clients: `evaluation`, `analytics` (private histograms and quantiles).
"""
