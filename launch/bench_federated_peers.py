"""Other simulators of federated learning, on the scenes of `launch.bench_federated`.

None is needed by trustml, none is installed with it. fedjax 0.0.17 runs in the same
process, with its `jit` backend; it was made for older JAX, and needs `jax.tree_map`
renamed to `jax.tree_util.tree_map` and dm-haiku beside it. pfl 0.6.0 trains its own
PyTorch model of the same layers, in one process, for the scenes with an MLP.
"""

import itertools

import jax
import numpy as np


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
