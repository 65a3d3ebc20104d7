"""What one private step costs beside the same model's ordinary step.

Goal: compiler cost and wall-clock of book-keeping, `vmap` and jax-privacy 2.0.0 (at its
best microbatch) as ratios to a plain SGD step, on CPU.

    python -m launch.bench --config=configs/bench_dp_step.py --workdir=runs/bench
    python -m launch.bench --config=configs/bench_dp_step.py:cost    # compiler only
    python -m launch.bench --config=configs/bench_dp_step.py:time    # wall-clock only
    python -m launch.bench --config=configs/bench_dp_step.py:smoke   # under 60 s

`--config.only=mlp` runs the models whose name contains 'mlp'. jax-privacy is optional:
`pip install jax-privacy==2.0.0`; without it its columns are absent and a note says so.
Transformers are named by width d, layers, batch B, tokens T and vocabulary V.
"""

import ml_collections

from trustml import config as config_lib


def _transformer(measure, d, layers, batch, tokens, vocab, **options):
    return {
        "kind": "transformer",
        "measure": measure,
        "width": d,
        "depth": layers,
        "heads": max(1, d // 64),
        "batch_size": batch,
        "length": tokens,
        "vocabulary_size": vocab,
        "scan_layers": False,
        "remat": False,
    } | options


def _models(smoke):
    if smoke:
        tiny = dict(d=16, layers=2, batch=4, tokens=6, vocab=50)
        return {
            "transformer_tiny_scan": _transformer("both", **tiny, scan_layers=True),
            "mlp_tiny": {
                "kind": "mlp",
                "measure": "both",
                "features": 8,
                "hidden": (16, 16),
                "classes": 3,
                "batch_size": 8,
            },
        }
    models = {}
    # The compiler rows. Scans and remat are judged by their own plain step.
    for d, batch, tokens, vocab in (
        (384, 32, 32, 8000),
        (768, 32, 64, 16000),
        (768, 32, 128, 16000),
    ):
        name = f"transformer_d{d}_L6_B{batch}_T{tokens}"
        models[name] = _transformer("cost", d, 6, batch, tokens, vocab)
    for scan, remat in ((True, False), (False, True), (True, True)):
        name = "transformer_d384_L6_B32_T32" + "_scan" * scan + "_remat" * remat
        models[name] = _transformer(
            "cost", 384, 6, 32, 32, 8000, scan_layers=scan, remat=remat
        )
    # The wall-clock rows.
    for d, layers, batch, tokens, vocab in (
        (256, 2, 16, 64, 2000),
        (256, 2, 32, 16, 8000),
        (384, 6, 16, 32, 8000),
    ):
        name = f"transformer_d{d}_L{layers}_B{batch}_T{tokens}_V{vocab}"
        models[name] = _transformer("both", d, layers, batch, tokens, vocab)
    models["mlp_784_512_512_10_B1024"] = {
        "kind": "mlp",
        "measure": "both",
        "features": 784,
        "hidden": (512, 512),
        "classes": 10,
        "batch_size": 1024,
    }
    models["bilstm_H128_B32_T24_V2000"] = {
        "kind": "bilstm",
        "measure": "both",
        "width": 128,
        "hidden": 128,
        "batch_size": 32,
        "length": 24,
        "vocabulary_size": 2000,
        "classes": 7,
        "slots": 40,
    }
    models["cnn_32x32_B32"] = {
        "kind": "cnn",
        "measure": "both",
        "image_shape": (32, 32, 3),
        "channels": (32, 64, 64),
        "classes": 10,
        "batch_size": 32,
    }
    return models


def get_config(arg=""):
    """The bench; `arg` is '', 'cost', 'time' or 'smoke'."""
    config_lib.check_argument(arg, ("", "cost", "time", "smoke"))
    smoke = arg == "smoke"
    config = ml_collections.ConfigDict()
    config.cost = arg != "time"  # the compiler's FLOPs, bytes and temporary memory
    config.time = arg != "cost"  # interleaved wall-clock
    config.only = ""  # run the models whose name contains this
    config.seed = 0  # of the random parameters and data
    config.learning_rate = 0.1  # of the SGD update that ends every step
    config.l2_clip_norm = 1.0  # C
    config.microbatch_size = 8 if not smoke else 2  # of the microbatched vmap
    config.rounds = 15 if not smoke else 3  # each method once a round, order rotated
    config.seconds_per_sample = 0.3 if not smoke else 0.01  # short steps are repeated
    config.peer_microbatches = (
        1,
        2,
        4,
        8,
        16,
        32,
        0,
    )  # of jax-privacy; 0 = whole batch
    config.opacus_python = ""  # an interpreter that has torch and opacus
    config.models = ml_collections.ConfigDict(_models(smoke))
    return config
