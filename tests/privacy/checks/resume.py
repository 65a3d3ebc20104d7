"""A run that is killed and begun again."""

import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from trustml import config as config_lib
from trustml import rng
from trustml import task as task_lib
from trustml.data import dataset
from trustml.experiments import loop


class _Killed(Exception):
    pass


def _resume_data():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(40, 3)).astype(np.float32)
    train = {"features": features, "label": (features[:, 0] > 0).astype(np.int32)}
    few = {"features": np.ones((4, 3), np.float32), "label": np.zeros(4, np.int32)}
    blank = {"vocab_size": 0, "feature_names": (), "texts": {}, "groups": {}}
    return dataset.Dataset(
        train, few, few, ("no", "yes"), (), None, name="made", source="here",
        licence="none", group_names={}, digest="made", **blank,
    )  # fmt: skip


def _logits(params, example):
    return jax.nn.log_softmax(example["features"] @ params["w"])


def resume(seed):
    """Killed and begun again, a run ends where it would have: its noise is its own.

    The second process draws a root of its own from the OS; that of the checkpoint must
    win, or steps would be repeated with other noise.
    """
    cfg = config_lib.default()
    cfg.privacy.noise_multiplier = 0.5
    cfg.privacy.check = False
    cfg.privacy.accountant = "rdp"
    cfg.optimizer.name = "momentum"
    cfg.train.steps, cfg.train.batch_size, cfg.train.physical_batch_size = 5, 12, 8
    cfg.train.num_devices, cfg.train.checkpoint_every, cfg.train.log_every = 1, 1, 1
    cfg.seed = seed
    config = config_lib.from_config_dict(cfg)
    task = task_lib.classification(lambda key: {"w": jnp.zeros((3, 2))}, _logits)
    kept = loop._metrics

    def killed_at_3(counts, plan, step):
        if step == 3:
            raise _Killed
        return kept(counts, plan, step)

    def fit(number, where, killed=False):
        root = rng.root(number)  # a new one: the loop gives its buffers away
        metrics = killed_at_3 if killed else kept
        with (
            mock.patch.object(rng, "root", lambda seed=None: root),
            mock.patch.object(loop, "_metrics", metrics),
        ):
            return loop.fit(config, _resume_data(), task, where, quiet=True).params

    with tempfile.TemporaryDirectory() as directory:
        where = pathlib.Path(directory)
        whole = fit(seed, where / "whole")
        try:
            fit(seed, where / "killed", killed=True)
        except _Killed:
            pass
        again = fit(seed + 10_000, where / "killed")
    same = np.array_equal(np.asarray(whole["w"]), np.asarray(again["w"]))
    assert same, "a resumed run differs from one that was never killed"
