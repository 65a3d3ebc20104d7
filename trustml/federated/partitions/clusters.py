"""Clients whose features differ: clusters of embeddings, by k-means.

Centres start by k-means++ (each new one an example, with a chance in proportion to its
squared distance from the nearest so far) and move by at most 100 of Lloyd's steps. A
cluster that loses all its examples is moved to the example farthest from its centre.
Distances are sums of floating-point numbers, so an example half-way between two centres
may fall to either on another processor; the digest then tells.

Dimension key: N examples, D features, M clusters.

Example::

    dealt = clusters.cluster_dirichlet(e_ND, 100, 0.5, scale='total', seed=0)

References: https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf
"""

from typing import Any, NamedTuple

import numpy as np

from trustml import _validate
from trustml.federated.partitions import base, labels

_STEPS = 100


class Clustering(NamedTuple):
    """What k-means found.

    Attributes:
      assignment: int64[N], the cluster of each example; none is empty.
      centres: float64[M, D].
      steps: of Lloyd's, until nothing moved.
    """

    assignment: np.ndarray
    centres: np.ndarray
    steps: int


def cluster(embeddings: Any, num_clients: int, *, seed: int) -> base.Partition:
    """One client for each cluster.

    Args:
      embeddings: [N, D], finite numbers.
      num_clients: C, the number of clusters.
      seed: at most 128 bits.

    Raises:
      ValueError: if there are fewer different examples than clusters.
    """
    found = k_means(embeddings, num_clients, seed=seed)
    digest = base.data_digest(np.asarray(embeddings))
    parameters = {"num_clients": num_clients}
    return base.make("cluster", found.assignment, num_clients, parameters, seed, digest)


def cluster_dirichlet(
    embeddings: Any,
    num_clients: int,
    alpha: float,
    *,
    scale: str,
    num_clusters: int = 10,
    sizes: Any = None,
    seed: int,
) -> base.Partition:
    """`labels.label_dirichlet` with the number of a cluster in the place of a label.

    Args:
      embeddings: [N, D], finite numbers.
      num_clients: C.
      alpha: > 0; small for clients of one cluster.
      scale: 'total' or 'per_class', what alpha means.
      num_clusters: M.
      sizes: [C], how many examples each client gets; equal where None.
      seed: at most 128 bits.
    """
    found = k_means(embeddings, num_clusters, seed=seed)
    return labels.of_kinds(
        "cluster_dirichlet",
        found.assignment,
        num_clients,
        alpha,
        scale,
        sizes,
        seed,
        base.data_digest(np.asarray(embeddings)),
        {"num_clusters": num_clusters},
    )


def k_means(embeddings: Any, num_clusters: int, *, seed: int) -> Clustering:
    """Clusters of examples that lie close together; see the module.

    Raises:
      ValueError: if embeddings are not finite numbers [N, D], or fewer than
        `num_clusters` of them differ.
    """
    points = np.asarray(embeddings, np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError(
            f"embeddings={points.dtype}{list(points.shape)} must be finite numbers "
            "[N, D]; flatten images, and drop examples with NaN."
        )
    number = _validate.integer_at_least("num_clusters", num_clusters, 1)
    random = base.random("k_means", seed)
    centres = _first_centres(points, number, random)
    assignment = np.full(len(points), -1, np.int64)
    for step in range(1, _STEPS + 1):
        nearest, distance = _nearest(points, centres)
        nearest = _no_empty(nearest, distance, number)
        if np.array_equal(nearest, assignment):
            return Clustering(assignment, centres, step)
        assignment = nearest
        order = np.argsort(assignment, kind="stable")
        starts = np.searchsorted(assignment[order], np.arange(number))
        counts = np.bincount(assignment, minlength=number)
        centres = np.add.reduceat(points[order], starts) / counts[:, None]
    return Clustering(assignment, centres, _STEPS)


def _first_centres(points, number: int, random: base.Random) -> np.ndarray:
    places = random.uniform(number)
    chosen = [min(int(places[0] * len(points)), len(points) - 1)] if len(points) else []
    distance = np.full(len(points), np.inf)
    while len(chosen) < number:
        if chosen:
            distance = np.minimum(distance, _squares(points, points[chosen[-1]]))
        edges = np.cumsum(distance)
        if not chosen or edges[-1] <= 0:
            _validate.fail(
                "num_clusters",
                number,
                f"is more than the {len(chosen)} embeddings that differ",
                "take fewer clusters",
            )
        at = np.searchsorted(edges, places[len(chosen)] * edges[-1], side="right")
        chosen.append(min(int(at), int(np.flatnonzero(distance)[-1])))
    return points[chosen]


def _squares(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    # Differences first: the expanded square loses digits of points far from 0.
    return np.square(points - centre).sum(axis=-1)


def _nearest(points: np.ndarray, centres: np.ndarray):
    """The nearest centre of each point, the first of equals, and its distance."""
    nearest = np.zeros(len(points), np.int64)
    distance = np.full(len(points), np.inf)
    for number, centre in enumerate(centres):
        here = _squares(points, centre)
        closer = here < distance
        nearest[closer] = number
        distance = np.where(closer, here, distance)
    return nearest, distance


def _no_empty(nearest: np.ndarray, distance: np.ndarray, number: int) -> np.ndarray:
    """Gives every empty cluster the point that is farthest from its own centre."""
    counts = np.bincount(nearest, minlength=number)
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return nearest
    out = nearest.copy()
    for point in np.argsort(-distance, kind="stable"):
        if not len(empty):
            break
        if counts[out[point]] > 1:  # never empties another
            counts[out[point]] -= 1
            out[point], empty = empty[0], empty[1:]
            counts[out[point]] = 1
    return out
