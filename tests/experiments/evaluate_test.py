import jax.numpy as jnp
import numpy as np

from trustml import task as task_lib
from trustml.experiments import evaluate


def _scores(logits, labels):
    """Predictions of a model whose log-probabilities are those of given logits."""
    task = task_lib.Task(
        init=lambda key: (),
        loss=lambda params, example, key: jnp.float32(0),
        predict=lambda params, example: (
            example["x"] - jnp.log(jnp.sum(jnp.exp(example["x"])))
        ),
        metrics={},
    )
    columns = {"x": np.float32(logits), "label": np.int32(labels)}
    return evaluate.predictions(task, (), columns, batch_size=2)


def test_losses_guesses_and_correct():
    logits = [[1.0, 2.0, 0.5], [3.0, -1.0, 0.0], [0.0, 0.0, 4.0]]
    found = _scores(logits, [1, 2, 2])
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(
        found.losses, -np.log(probs[np.arange(3), [1, 2, 2]]), rtol=1e-5
    )
    np.testing.assert_array_equal(found.guesses, [1, 0, 2])
    np.testing.assert_array_equal(found.correct, [True, False, True])


def test_confident_losses_stay_apart():
    """Where p rounds to 1, -log p would be 0 for all, and an attack would see ties."""
    found = _scores([[20.0, 0.0], [30.0, 0.0], [40.0, 0.0]], [0, 0, 0])
    np.testing.assert_allclose(found.losses, np.exp([-20.0, -30.0, -40.0]), rtol=1e-3)
