"""The clients, data and models that `launch.bench_federated` runs.

    clients with n_k examples each, some of them in every cohort; the loss of a model

Example::

    scene = bench_scenes.build(config.scenes.digits_mlp, seed=0, rounds=4)
    steps = scene.steps(scene.cohorts[0])
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trustml.federated import populations
from trustml.models import cnn, mlp

_BYTES = 128  # characters of the language model; others count as the last


class Scene(NamedTuple):
    """A federation to be timed.

    Attributes:
      loss: (params, example, key) -> float32[].
      params: to begin with.
      columns: name -> [N, ...], the clients' rows one after another.
      sizes: int64[K].
      cohorts: int64[R, M], clients of each round.
      batch_size: B.
    """

    loss: Callable[..., jax.Array]
    params: Any
    columns: dict[str, np.ndarray]
    sizes: np.ndarray
    cohorts: np.ndarray
    batch_size: int

    @property
    def offsets(self) -> np.ndarray:
        """int64[K + 1], where each client's rows begin."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def steps(self, clients: np.ndarray) -> int:
        """Batches that these clients go through in one epoch."""
        return int(-(-self.sizes[clients] // self.batch_size).sum())


def build(spec, seed: int, rounds: int) -> Scene:
    """The scene of one entry of `config.scenes`."""
    draw = np.random.default_rng(seed)
    key = jax.random.key(seed)
    if spec.data == "shakespeare":
        columns, sizes = windows(spec.length)
        init, loss = lstm(spec.width, spec.hidden)
    else:
        image, label = _images(spec.data)
        sizes = draw.integers(spec.low, spec.high + 1, spec.clients)
        rows = draw.integers(len(image), size=sizes.sum())
        label = label[rows].astype(np.int32)
        if spec.kind == "mlp":
            columns = {"features": image[rows].reshape(len(rows), -1), "label": label}
            task = mlp.task(columns["features"].shape[1], 10, hidden=spec.hidden)
        else:
            columns = {"image": image[rows], "label": label}
            task = cnn.task(columns["image"].shape[1:], 10, channels=spec.channels)
        init, loss = task.init, task.loss
    cohorts = np.stack(
        [
            np.sort(draw.choice(len(sizes), spec.cohort, replace=False))
            for _ in range(rounds)
        ]
    )
    params = jax.jit(init)(key)
    return Scene(loss, params, columns, sizes, cohorts, spec.batch_size)


def _images(name: str) -> tuple[np.ndarray, np.ndarray]:
    """float32[N, H, W, 1] in [0, 1], and labels."""
    if name == "digits":
        from sklearn import datasets

        found: Any = datasets.load_digits()
        return (found.images[..., None] / 16).astype(np.float32), found.target
    folder = pathlib.Path(os.environ.get("TRUSTML_DATA", "")) / "mnist"
    with np.load(folder / "mnist.npz") as file:
        image = file["x_train"][..., None].astype(np.float32) / np.float32(255)
        return image, file["y_train"]


def windows(length: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What each speaker says in all, cut into windows of `length` characters.

    Returns:
      Columns tokens int32[N, length + 1] and length int32[N], characters to be told;
      and sizes int64[K].
    """
    found = populations.load("shakespeare")
    spoken: dict[str, list[str]] = {}
    for who, text in zip(found.clients, found.columns["text"], strict=True):
        spoken.setdefault(str(who), []).append(text)
    tokens, counts, sizes = [], [], []
    for who in sorted(spoken):
        text = "\n".join(spoken[who]).encode() + b"\n\n"
        codes = np.minimum(np.frombuffer(text, np.uint8), _BYTES - 1)
        many = -(-(len(codes) - 1) // length)
        sizes.append(many)
        for begin in range(0, many * length, length):
            part = codes[begin : begin + length + 1]
            tokens.append(np.pad(part, (0, length + 1 - len(part))))
            counts.append(len(part) - 1)
    columns = {
        "tokens": np.stack(tokens).astype(np.int32),
        "length": np.array(counts, np.int32),
    }
    return columns, np.array(sizes)


def lstm(width: int, hidden: int):
    """A language model of characters: embedding, one LSTM, softmax.

    Returns:
      init: key -> params; loss: (params, example, key) -> float32[], the mean over the
      characters of a window.
    """

    def init(key):
        keys = jax.random.split(key, 4)

        def matrix(key, rows, columns):
            return jax.random.normal(key, (rows, columns)) / jnp.sqrt(rows)

        return {
            "embedding": jax.random.normal(keys[0], (_BYTES, width)),
            "input": matrix(keys[1], width, 4 * hidden),
            "state": matrix(keys[2], hidden, 4 * hidden),
            "bias": jnp.zeros(4 * hidden),
            "head": matrix(keys[3], hidden, _BYTES),
        }

    def loss(params, example, key):
        del key
        before, after = example["tokens"][:-1], example["tokens"][1:]
        inputs = params["embedding"][before] @ params["input"] + params["bias"]

        def step(carry, x):
            h, c = carry
            i, f, o, g = jnp.split(x + h @ params["state"], 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        begin = (jnp.zeros(hidden), jnp.zeros(hidden))
        states = jax.lax.scan(step, begin, inputs)[1]
        logs = jax.nn.log_softmax(states @ params["head"])
        told = jnp.take_along_axis(logs, after[:, None], 1)[:, 0]
        real = jnp.arange(len(after)) < example["length"]
        return -jnp.where(real, told, 0).sum() / jnp.maximum(example["length"], 1)

    return init, loss
