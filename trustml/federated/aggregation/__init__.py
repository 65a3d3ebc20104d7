"""From what clients send to one update of the server: a chain of pure functions.

    clip -> compress -> clip again -> weight -> (secure sum | robust | sum) -> noise
    -> divide

Clients do the part before the sum, one at a time, vmapped; the server the rest.

The names to know:

`chain.chain`    puts links together, checks their order, knows the sensitivity
`clipping`       L2 over all leaves, at a fixed norm or one that follows a quantile
`compression`    stochastic quantisation, top-k, signs; `low_rank` for matrices
`weighting`      a rule of `trustml.federated.weighting` as a link
`secure`         arithmetic of secure aggregation: masks, dropouts, overflow
`robust`         medians, trimmed means, Krum, Bulyan
`dp`             noise: central, local, correlated over rounds, on a grid

Example::

    aggregator = chain.chain(
        clipping.clip(1.0), weighting.of(rule), dp.central(noise_multiplier=1.0)
    )
    state = aggregator.init(params, rng.root())
    message, memory, record = aggregator.client(state, delta, (), key)
    update, state, info = aggregator.server(state, total, cohort, key)
"""
