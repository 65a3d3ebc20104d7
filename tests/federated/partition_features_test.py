"""Examples as points: topics of words and kinds of images come apart."""

import numpy as np
import pytest

from trustml.federated import partitions
from trustml.federated.partitions import clusters, features

RNG = np.random.default_rng(0)
TOPIC = RNG.integers(0, 4, 400)


def texts():
    # Topic t speaks of words 50 t ... 50 t + 49, and of the ten that all use.
    length = RNG.integers(15, 30, 400)
    tokens = 10 + 50 * TOPIC[:, None] + RNG.integers(0, 50, (400, 30))
    common = RNG.integers(0, 10, (400, 30))
    tokens = np.where(RNG.random((400, 30)) < 0.4, common, tokens)
    tokens[np.arange(30) >= length[:, None]] = 7  # whatever padding holds
    return {"tokens": tokens, "length": length}


def purity(points):
    found = clusters.k_means(points, 4, seed=0).assignment
    table = np.zeros((4, 4))
    np.add.at(table, (found, TOPIC), 1)
    return table.max(1).sum() / len(TOPIC)


def test_topics_are_found():
    columns = texts()
    points = features.of_columns(columns, seed=0)
    assert points.shape == (400, 64)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, rtol=1e-12)
    assert purity(points) > 0.95
    np.testing.assert_array_equal(points, features.of_columns(columns, seed=0))
    assert np.abs(points - features.of_columns(columns, seed=1)).max() > 0.1
    # Padding says nothing.
    other = {**columns, "tokens": columns["tokens"].copy()}
    other["tokens"][np.arange(30) >= columns["length"][:, None]] = 9
    np.testing.assert_array_equal(points, features.of_columns(other, seed=0))


def test_images_are_flat_and_standardised():
    image = RNG.normal(size=(400, 3, 3, 1)) + 5 * TOPIC[:, None, None, None]
    image[:, 0, 0] = 2.0  # constant
    points = features.of_columns({"image": image, "label": TOPIC}, seed=0)
    assert points.shape == (400, 9) and np.isfinite(points).all()
    np.testing.assert_allclose(points[:, 1:].std(0), 1, rtol=1e-9)
    assert purity(points) > 0.95


def test_small_alpha_makes_clients_of_one_topic():
    points = features.of_columns(texts(), seed=0)
    share = []
    for alpha in (0.01, 100.0):
        dealt = partitions.cluster_dirichlet(
            points, 20, alpha, scale="per_class", num_clusters=4, seed=0
        )
        counts = partitions.counts(dealt, TOPIC)
        share.append((counts.max(1) / counts.sum(1)).mean())
    assert share[0] > 0.85 and share[1] < 0.5


def test_nothing_to_cluster_by():
    with pytest.raises(ValueError, match=r"columns=\['label'\] holds nothing"):
        features.of_columns({"label": TOPIC}, seed=0)
