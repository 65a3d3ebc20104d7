"""Other simulators of federated learning, on the scenes of `launch.bench_federated`.

None is needed by trustml, none is installed with it. fedjax 0.0.17 runs in the same
process, with its `jit` backend; it was made for older JAX, and needs `jax.tree_map`
renamed to `jax.tree_util.tree_map` and dm-haiku beside it.
"""

import jax


def fedjax(scene, rate: float):
    """Rounds of `fedjax.algorithms.fed_avg`."""
    import fedjax as lib
    from fedjax.algorithms import fed_avg

    def mean(params, batch, key):
        losses = jax.vmap(scene.loss, (None, 0, None))(params, batch, key)
        return losses.mean()

    hparams = lib.ShuffleRepeatBatchHParams(batch_size=scene.batch_size, num_epochs=1)
    with lib.for_each_client_backend("jit"):
        algorithm = fed_avg.federated_averaging(
            jax.grad(mean),
            lib.optimizers.sgd(rate),
            lib.optimizers.sgd(1.0),
            hparams,
        )
    held = []
    for begin, end in zip(scene.offsets, scene.offsets[1:], strict=False):
        own = {name: column[begin:end] for name, column in scene.columns.items()}
        held.append(lib.ClientDataset(own))

    def run(count):
        state = algorithm.init(scene.params)
        for number in range(count):
            keys = jax.random.split(jax.random.key(number), scene.cohorts.shape[1])
            clients = scene.cohorts[number % len(scene.cohorts)]
            cohort = [
                (int(k), held[k], key) for k, key in zip(clients, keys, strict=True)
            ]
            state, _ = algorithm.apply(state, cohort)
        return jax.block_until_ready(state.params)

    return run
