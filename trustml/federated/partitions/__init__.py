"""Who holds which example: N examples dealt to C clients, by seed and with a digest.

    client c holds the examples permutation[offsets[c]:offsets[c+1]]

| function | what makes clients differ |
| --- | --- |
| `iid` | nothing |
| `label_dirichlet` | the mix of labels |
| `label_activity` | the labels and how much each holds, together |
| `quantity_dirichlet`, `lognormal_quantity` | how much each holds |
| `shards` | a few labels each |
| `cluster`, `cluster_dirichlet` | features: clusters of embeddings |
| `features.of_columns` | (such embeddings, of images, tables or words) |
| `natural` | whatever real people do: one client for each value of a column |

`split_test` gives test examples to the same clients in the same mix, `statistics` and
`counts` say what came out.

Same arguments and seed, same partition and digest: random numbers are raw words of
NumPy's Philox, turned into what is needed by inverse distribution functions and sorting
here, since what NumPy makes of them may change from version to version. Sums of
floating-point numbers enter `cluster` only.

Example::

    from trustml.federated import partitions, store
    dealt = partitions.label_dirichlet(labels, 100, 0.5, scale='per_class', seed=0)
    partitions.statistics(dealt, labels).total_variation
    held = store.from_partition({'image': x, 'label': labels}, *dealt[:2])
"""

from trustml.federated.partitions import features
from trustml.federated.partitions.activity import label_activity
from trustml.federated.partitions.base import Partition, split_test
from trustml.federated.partitions.clusters import cluster, cluster_dirichlet
from trustml.federated.partitions.groups import natural, shards
from trustml.federated.partitions.labels import label_dirichlet
from trustml.federated.partitions.quantity import (
    iid,
    lognormal_quantity,
    lognormal_sizes,
    quantity_dirichlet,
    quantity_sizes,
)
from trustml.federated.partitions.summary import Statistics, counts, statistics

__all__ = [
    "Partition",
    "Statistics",
    "cluster",
    "cluster_dirichlet",
    "counts",
    "features",
    "iid",
    "label_activity",
    "label_dirichlet",
    "lognormal_quantity",
    "lognormal_sizes",
    "natural",
    "quantity_dirichlet",
    "quantity_sizes",
    "shards",
    "split_test",
    "statistics",
]
