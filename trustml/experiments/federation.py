"""From the config to the pieces of a federation: store, selector, algorithm, chain.

Example::

    store, dealt = federation.store(config, data)
    selector = federation.selector(config, clients=100, seed=0)
    state = selector.init(stores.sizes(store))
    rule = federation.weighting(config, selector, state)
    algorithm = federation.algorithm(config, task.loss, len(state.sizes))
    aggregator = federation.aggregator(config, rule, noise_multiplier=None)
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from trustml import _validate, specs
from trustml.data import datasets
from trustml.experiments import build
from trustml.federated import (
    imports,
    partitions,
    probabilities,
    quotas,
    selection,
    timeline,
    utility,
)
from trustml.federated import store as stores
from trustml.federated import weighting as weighting_lib
from trustml.federated.aggregation import (
    chain,
    clipping,
    compression,
    dp,
    robust,
)
from trustml.federated.aggregation import weighting as links
from trustml.federated.algorithms import (
    averaging,
    base,
    control,
    fair,
    mime,
    personal,
    server_optimizers,
)

CYCLES = 10  # groups of clients of selection 'cyclic'


def store(
    config: specs.RunConfig, data: datasets.Dataset, *, shuffled: bool = True
) -> tuple[stores.ClientStore, partitions.Partition | None]:
    """The training split in the hands of clients, and the partition if one was made.

    Args:
      config: of the run.
      data: its data.
      shuffled: whether the examples of a made client are in a seeded order (`arrival`),
        or in that of the data.

    Raises:
      ValueError: for a partition that cannot be, or cohorts beyond the clients.
    """
    spec, seed = config.federated, config.seed
    if spec.partition == "natural":
        held = imports.from_dataset(data)
        spec.check_clients(len(held.offsets) - 1)
        return held, None
    labels = np.asarray(data.train["label"])
    count, clients = len(labels), spec.clients
    if clients > count:
        bound = f"exceeds the {count} training examples"
        _validate.fail("federated.clients", clients, bound, "lower it")
    sizes = None
    if spec.size_cv:
        sizes = partitions.lognormal_sizes(count, clients, spec.size_cv, seed=seed)
    dealt = {
        "iid": lambda: partitions.iid(count, clients, seed=seed),
        "label_dirichlet": lambda: partitions.label_dirichlet(
            labels, clients, spec.alpha, scale="per_class", sizes=sizes, seed=seed
        ),
        "quantity_dirichlet": lambda: partitions.quantity_dirichlet(
            count, clients, spec.alpha, seed=seed
        ),
        "lognormal": lambda: partitions.lognormal_quantity(
            count, clients, spec.size_cv, seed=seed
        ),
        "label_activity": lambda: partitions.label_activity(
            labels, clients, spec.alpha, seed=seed
        ),
        "cluster": lambda: partitions.cluster_dirichlet(
            partitions.features.of_columns(data.train, seed=seed),
            clients,
            spec.alpha,
            scale="per_class",
            num_clusters=spec.clusters,
            sizes=sizes,
            seed=seed,
        ),
        "shards": lambda: partitions.shards(labels, clients, spec.shards, seed=seed),
    }[spec.partition]()
    rows = dealt.permutation
    if shuffled:
        rows = rows[arrival(dealt.offsets, seed)]
    return stores.from_partition(data.train, dealt.offsets, rows), dealt


def arrival(offsets: np.ndarray, seed: int) -> np.ndarray:
    """A seeded order of each client's examples, where the data have none of their own.

    Files may be sorted by label, and partitions keep the order of files: what arrives
    first would be another task than what arrives last.
    """
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    drawn = np.random.Philox(key=[seed, 0]).random_raw(len(owner))
    return np.lexsort((drawn, owner))


def cell(config: specs.RunConfig) -> dict[str, Any]:
    """What a table of runs sorts them by: optimizers, rates, algorithm, partition."""
    spec = config.federated
    return {
        "partition": spec.partition,
        "algorithm": spec.algorithm,
        "prox": spec.prox,
        "client": config.optimizer.name,
        "server": spec.server_optimizer,
        "client_rate": config.optimizer.learning_rate,
        "server_rate": spec.server_learning_rate,
        "seed": config.seed,
    }


def selector(
    config: specs.RunConfig, clients: int, seed: int | None
) -> selection.Selector:
    """Who of so many clients takes part; `seed` None draws in secret."""
    spec = config.federated
    m = spec.asked
    coins: Any = selection.poisson
    cap = probabilities.default_cap(m, clients, spec.cap)
    made = {
        "uniform": lambda: selection.uniform(m, seed=seed),
        "fixed_size": lambda: selection.fixed_size(m, seed=seed),
        "power": lambda: coins(probabilities.power(spec.beta), m, p_max=1, seed=seed),
        "capped_power": lambda: selection.capped_power(
            m, beta=spec.beta, p_max=cap, seed=seed
        ),
        "log": lambda: coins(probabilities.log(), m, seed=seed),
        "softmax": lambda: coins(probabilities.softmax(spec.temperature), m, seed=seed),
        "threshold": lambda: coins(
            probabilities.threshold(spec.threshold), m, seed=seed
        ),
        "top_k": lambda: quotas.top_k(m),
        "stratified": lambda: quotas.stratified(m, seed=seed),
        "systematic": lambda: quotas.systematic(
            m, probabilities.power(spec.beta), seed=seed
        ),
        "power_of_choice": lambda: utility.power_of_choice(
            m, candidates=min(2 * m, clients), seed=seed
        ),
        "oort": lambda: utility.oort(m, seed=seed),
        "cyclic": lambda: selection.cyclic(m, bands=CYCLES, seed=seed),
    }
    return made[spec.selection]()


def weighting(
    config: specs.RunConfig, chosen: selection.Selector, state: selection.State
) -> weighting_lib.Weighting:
    """How much a client counts, at the sizes of `state`."""
    spec, private = config.federated, config.privacy.enabled
    if spec.weighting == "data":
        return weighting_lib.by_data()
    if spec.weighting == "uniform":
        return weighting_lib.mean(spec.cohort if private else None)
    inclusion = chosen.inclusion(state)
    if inclusion is None:
        bound = f"needs probabilities, which {chosen.name} has not"
        cure = "set it to 'data' or 'uniform'"
        _validate.fail("federated.weighting", spec.weighting, bound, cure)
    if spec.weighting == "capped":
        if not private:
            return weighting_lib.capped_data(spec.weight_cap)
        return weighting_lib.capped_data(spec.weight_cap, state.sizes, inclusion)
    target = weighting_lib.data_share(np.where(inclusion > 0, state.sizes, 0))
    make: Any = {
        "horvitz_thompson": weighting_lib.horvitz_thompson,
        "hajek": weighting_lib.hajek,
    }[spec.weighting]
    return make(target, inclusion)


def algorithm(
    config: specs.RunConfig, loss: base.Loss, population: int
) -> base.FederatedAlgorithm:
    """What clients and server do."""
    spec, client = config.federated, client_optimizer(config)
    server, schedule = server_optimizer(config), round_schedule(config)
    eta = config.optimizer.learning_rate
    common: Any = {"schedule": schedule}
    return {
        "fedavg": lambda: averaging.fedavg(
            loss, client, server, prox=spec.prox, **common
        ),
        "scaffold": lambda: control.scaffold(
            loss, learning_rate=eta, server=server, **common
        ),
        "fednova": lambda: control.fednova(
            loss, learning_rate=eta, server=server, prox=spec.prox, **common
        ),
        "feddyn": lambda: control.feddyn(loss, client, alpha=spec.dyn_alpha, **common),
        "mime": lambda: mime.mime(loss, client, server, **common),
        "mimelite": lambda: mime.mime(loss, client, server, lite=True, **common),
        "qffl": lambda: fair.qffl(loss, learning_rate=eta, q=spec.q, **common),
        "afl": lambda: fair.afl(
            loss,
            client,
            server,
            domains=np.arange(population),
            learning_rate=spec.fair_learning_rate,
            **common,
        ),
        "ditto": lambda: personal.ditto(loss, client, server, pull=spec.pull, **common),
        "pfedme": lambda: personal.pfedme(
            loss,
            server,
            learning_rate=eta,
            inner_learning_rate=eta,
            pull=spec.pull,
            **common,
        ),
        "apfl": lambda: personal.apfl(loss, server, learning_rate=eta, **common),
    }[spec.algorithm]()


def client_optimizer(config: specs.RunConfig) -> optax.GradientTransformation:
    """The clients' optimizer, at a constant rate; rounds change it, not steps."""
    still = dataclasses.replace(config.optimizer, schedule="constant", warmup_steps=0)
    return build.optimizer(dataclasses.replace(config, optimizer=still))


def server_optimizer(config: specs.RunConfig) -> optax.GradientTransformation:
    """The server's optimizer; the adaptive ones are those of FedOpt."""
    spec = config.federated
    rate = spec.server_learning_rate
    return {
        "sgd": lambda: optax.sgd(rate),
        "momentum": lambda: optax.sgd(rate, momentum=spec.server_momentum),
        "adam": lambda: server_optimizers.fedadam(rate),
        "yogi": lambda: server_optimizers.fedyogi(rate),
        "adagrad": lambda: server_optimizers.fedadagrad(rate),
    }[spec.server_optimizer]()


def round_schedule(config: specs.RunConfig) -> averaging.Schedule:
    """Round -> factor of the clients' learning rate."""
    rate = build.learning_rate(config)
    base_rate = config.optimizer.learning_rate
    return lambda round_: jnp.asarray(rate(round_) / base_rate, jnp.float32)


def aggregator(
    config: specs.RunConfig,
    rule: weighting_lib.Weighting,
    noise_multiplier: float | None,
) -> chain.Aggregator:
    """What becomes of messages, in the order of `aggregation.chain`.

    Args:
      config: of the run.
      rule: how much a client counts.
      noise_multiplier: z; None without privacy.
    """
    spec, parts = config.federated, []
    if config.privacy.enabled:
        parts.append(clipping.clip(config.privacy.l2_clip_norm))
    if spec.compression:
        parts.append(
            {
                "quantize": lambda: compression.quantise(spec.bits),
                "top_k": lambda: compression.top_k(spec.keep),
                "sign": lambda: compression.sign(),
            }[spec.compression]()
        )
        if config.privacy.enabled:
            parts.append(clipping.clip(config.privacy.l2_clip_norm))
    if spec.robust:
        liars = spec.attackers
        parts.append(
            {
                "median": robust.median,
                "trimmed_mean": lambda: robust.trimmed_mean(liars / spec.cohort),
                "krum": lambda: robust.krum(liars),
                "multi_krum": lambda: robust.multi_krum(liars),
                "bulyan": lambda: robust.bulyan(liars),
            }[spec.robust]()
        )
        return chain.chain(*parts)
    parts.append(links.of(rule))
    if noise_multiplier is not None:
        parts.append(dp.central(noise_multiplier))
    return chain.chain(*parts)


def periods(config: specs.RunConfig, held: stores.ClientStore) -> timeline.Timeline:
    """What every client holds in each period."""
    spec, sizes = config.federated, stores.sizes(held)
    if spec.periods == 1 and spec.retention == "keep_all":
        return timeline.static(sizes, 1)
    return kept(config, held, timeline.even(sizes, spec.periods))


def kept(
    config: specs.RunConfig, held: stores.ClientStore, arrived: np.ndarray
) -> timeline.Timeline:
    """What of the examples that have arrived, int32[T, K], the config retains."""
    spec = config.federated
    return {
        "keep_all": lambda: timeline.keep_all(arrived),
        "fifo": lambda: timeline.fifo(arrived, spec.storage),
        "reservoir": lambda: timeline.reservoir(
            arrived, spec.storage, seed=config.seed
        ),
        "class_balanced": lambda: timeline.class_balanced(
            arrived,
            spec.storage,
            np.asarray(held.columns["label"]),
            held.offsets,
            seed=config.seed,
        ),
    }[spec.retention]()
