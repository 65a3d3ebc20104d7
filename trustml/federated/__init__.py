"""Federated learning: a million ragged clients, vmapped, on one device or many.

    store -> selection -> cohort -> schedule -> lanes -> aggregation -> server

The names to know:

`store.ClientStore`        examples of all clients in flat columns, with offsets
`partitions`               who holds which example
`selection`                which clients take part in a round, and what that is worth
`objective`                what selection and weighting together optimise
`timeline`                 who holds what when, where data arrive over time
`user_privacy`             epsilon of the selection that was run
`weighting`                how much a client counts, and what the sum is divided by
`lanes.run`                one client after another in each of L lanes, in one scan
`algorithms`               what clients do, and what the server makes of it
`aggregation`              clip, compress, sum securely or robustly, add noise
`evaluation`               a model, or clients' own, on the examples of each client
`analytics`                histograms and quantiles that are private for each client
"""
