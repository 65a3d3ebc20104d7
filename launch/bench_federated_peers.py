"""Other simulators of federated learning, on the scenes of `launch.bench_federated`.

None is needed by trustml, none is installed with it. fedjax 0.0.17 runs in the same
process, with its `jit` backend; it was made for older JAX, and needs `jax.tree_map`
renamed to `jax.tree_util.tree_map` and dm-haiku beside it. pfl 0.6.0 trains its own
PyTorch model of the same layers, in one process, and Flower 1.41 JAX's in as many Ray
actors as there are cores, both for the scenes with an MLP. Of Flower what counts is the
time from one aggregation to the next, without starting Ray.
"""

import functools
import itertools
import json
import os
import time

import jax
import ml_collections
import numpy as np

from launch import bench_scenes


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


def pfl(scene, rate: float):
    """Rounds of pfl's `FederatedAveraging` in its `SimulatedBackend`."""
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    layers = [np.asarray(leaf).shape for leaf in jax.tree.leaves(scene.params)]
    widths = [shape for shape in layers if len(shape) == 2]

    class Mlp(torch.nn.Module):
        def __init__(self):
            super().__init__()
            stack: list = [torch.nn.Linear(*widths[0])]
            for shape in widths[1:]:
                stack += [torch.nn.ReLU(), torch.nn.Linear(*shape)]
            self.stack = torch.nn.Sequential(*stack)

        def loss(self, x, y, is_eval=False):
            return torch.nn.functional.cross_entropy(self.stack(x), y)

        def metrics(self, x, y, is_eval=False):
            return {}

    x = torch.tensor(np.asarray(scene.columns["features"]))
    y = torch.tensor(np.asarray(scene.columns["label"]).astype(np.int64))
    held = [
        Dataset(raw_data=[x[begin:end], y[begin:end]])
        for begin, end in zip(scene.offsets, scene.offsets[1:], strict=False)
    ]
    many = scene.cohorts.shape[1]

    def run(count):
        coming = itertools.cycle(scene.cohorts.ravel().tolist())
        users = FederatedDataset(lambda k: held[k], lambda: next(coming))
        made = Mlp()
        model = PyTorchModel(
            made,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(made.parameters(), 1.0),
        )
        return FederatedAveraging().run(
            algorithm_params=NNAlgorithmParams(count, count + 1, many, 0),
            backend=SimulatedBackend(users, users, [WeightByDatapoints()]),
            model=model,
            model_train_params=NNTrainHyperParams(
                local_batch_size=scene.batch_size,
                local_num_epochs=1,
                local_learning_rate=rate,
            ),
        )

    return run


def flower_seconds(spec, seed: int, rate: float, rounds: int) -> list[float]:
    """Seconds of each of Flower's rounds, from one aggregation to the next."""
    import flwr
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    named = json.dumps(spec.to_dict()), seed  # actors build the scene once each
    scene = _scene(*named)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(scene.params)]
    ended: list[float] = []

    class Client(flwr.client.NumPyClient):
        def __init__(self, number):
            self.number = number

        def fit(self, parameters, config):
            scene, step = _scene(*named), _sgd_step(*named, rate)
            tree, size = jax.tree.structure(scene.params), scene.batch_size
            params = jax.tree.unflatten(tree, parameters)
            rows = np.arange(*scene.offsets[self.number : self.number + 2])
            np.random.default_rng(0).shuffle(rows)
            for begin in range(0, len(rows), size):
                index = np.resize(rows[begin : begin + size], size)
                batch = {name: x[index] for name, x in scene.columns.items()}
                params = step(params, batch)
            return [np.asarray(x) for x in jax.tree.leaves(params)], len(rows), {}

    class Timed(flwr.server.strategy.FedAvg):
        def aggregate_fit(self, server_round, results, failures):
            found = super().aggregate_fit(server_round, results, failures)
            ended.append(time.perf_counter())
            return found

    def client_fn(context):
        return Client(int(context.node_config["partition-id"])).to_client()

    def server_fn(context):
        del context
        strategy = Timed(
            fraction_fit=1.0,
            fraction_evaluate=0.0,
            initial_parameters=flwr.common.ndarrays_to_parameters(leaves),
        )
        config = flwr.server.ServerConfig(num_rounds=rounds + 1)
        return flwr.server.ServerAppComponents(strategy=strategy, config=config)

    run_simulation(
        server_app=ServerApp(server_fn=server_fn),
        client_app=ClientApp(client_fn=client_fn),
        num_supernodes=scene.cohorts.shape[1],
        backend_config={
            "client_resources": {"num_cpus": 1},
            "init_args": {"num_cpus": os.cpu_count() or 1},
        },
    )
    return np.diff(ended).tolist()


@functools.cache
def _scene(spec: str, seed: int) -> bench_scenes.Scene:
    return bench_scenes.build(ml_collections.ConfigDict(json.loads(spec)), seed, 1)


@functools.cache
def _sgd_step(spec: str, seed: int, rate: float):
    scene = _scene(spec, seed)

    def mean(params, batch):
        losses = jax.vmap(scene.loss, (None, 0, None))(params, batch, jax.random.key(0))
        return losses.mean()

    @jax.jit
    def step(params, batch):
        grads = jax.grad(mean)(params, batch)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads)

    return step
