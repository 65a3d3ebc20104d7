"""What a simulated round costs beside the same steps without a federation, on a CPU.

Goal: FedAvg through `federated.rounds` (shuffling, scheduling, sum and server step
included) against one jitted scan of SGD over as many batches, a bare loop of jitted
steps, and other simulators where they are installed. Efficiency is client-steps per
second over those of the scan.

    python -m launch.bench_federated --config=configs/bench_federated.py
    python -m launch.bench_federated --config=configs/bench_federated.py:smoke

`--config.only=digits` runs the scenes whose name contains 'digits'. fedjax takes part
where it can be imported. Data under $TRUSTML_DATA: mnist, shakespeare.
"""

import ml_collections

from trustml import config as config_lib


def _scenes(smoke):
    few = {"clients": 50, "low": 20, "high": 200, "batch_size": 20}
    few |= {"cohort": 50, "rounds": 4}  # different cohorts, one after another
    scenes = {
        "digits_mlp": few | {"data": "digits", "kind": "mlp", "hidden": (32,)},
        "mnist_mlp": few | {"data": "mnist", "kind": "mlp", "hidden": (200,)},
        "mnist_cnn": few
        | {"data": "mnist", "kind": "cnn", "channels": (16, 32)}
        | {"clients": 16, "cohort": 16, "rounds": 1},
        "shakespeare_lstm": {
            "data": "shakespeare",
            "kind": "lstm",
            "length": 80,
            "width": 16,
            "hidden": 64,
            "batch_size": 10,
            "cohort": 100,
            "rounds": 1,
        },
    }
    return {"digits_mlp": scenes["digits_mlp"]} if smoke else scenes


def get_config(arg=""):
    """The bench; `arg` is '' or 'smoke'."""
    config_lib.check_argument(arg, ("", "smoke"))
    smoke = arg == "smoke"
    config = ml_collections.ConfigDict()
    config.only = ""  # run the scenes whose name contains this
    config.seed = 0  # of parameters, sizes and draws
    config.learning_rate = 0.1  # of the clients' SGD; the server's is 1
    config.lanes = 0 if not smoke else 4  # L; 0 = probed, beside `also`
    config.devices = 1  # that share the lanes; a CPU is cut into as many
    config.also = ()  # further L that are timed, such as (1, 4, 16)
    config.rounds = 5 if not smoke else 2  # repetitions; every way once in each
    config.seconds_per_sample = 0.5 if not smoke else 0.01  # short rounds are repeated
    config.scenes = ml_collections.ConfigDict(_scenes(smoke))
    return config
