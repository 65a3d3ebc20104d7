"""Algorithms against FedAvg where they have to be FedAvg, and their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.federated import worlds
from trustml.federated import rounds
from trustml.federated import weighting as rules
from trustml.federated.aggregation import chain, weighting
from trustml.federated.algorithms import (
    averaging,
    base,
    buffered,
    clusters,
    control,
    fair,
    mime,
    personal,
    server_optimizers,
)

ETA, BATCH = 0.3, 5
LOSS = worlds.loss


def one_device(batch_size=BATCH, **settings):
    return rounds.Settings(
        jit=jax.jit,
        lanes=1,
        batch_size=batch_size,
        devices=jax.devices()[:1],
        **settings,
    )


def play(
    algorithm,
    world,
    *,
    count=2,
    uniform=False,
    epochs=1,
    params=None,
    memory=False,
    given=(),
    finite=True,
):
    """Rounds with all clients; the server's model after them."""
    people = len(world.sizes)
    made = rounds.make(
        algorithm,
        chain.chain(weighting.of(rules.mean() if uniform else rules.by_data())),
        population=people,
        settings=one_device(capacity=16, epochs=epochs),
    )
    offsets = world.offsets

    def place(handed):
        index = [
            offsets[k] + np.arange(handed[k]) % max(world.sizes[k], 1)
            for k in range(people)
        ]
        return jax.tree.map(jnp.asarray, world.data), np.concatenate(index)

    weights = np.ones(people) if uniform else world.sizes / world.sizes.sum()
    chosen = rounds.Chosen(np.arange(people), world.sizes, weights, given=given)
    state = made.init(world.params if params is None else params)
    for number in range(count):
        key = jax.random.fold_in(jax.random.key(1), number)
        state, info = made.run(state, key, chosen, place)
    assert np.isfinite(info.records().algorithm.loss).all() == finite
    return state if memory else state.server.params


def loop(world, *, count=2, uniform=False, epochs=1, prox=0.0):
    """FedAvg, one client and one step at a time."""
    params = world.params
    gradient = jax.jit(worlds.mean_gradient)
    for _ in range(count):
        total, weight = base.zeros(params), 0.0
        for k in np.flatnonzero(world.sizes):
            local = params
            for rows in worlds.batches(world, k, BATCH, epochs):
                grads = gradient(local, rows)
                grads = base.add_scaled(grads, prox, base.subtract(local, params))
                local = base.add_scaled(local, -ETA, grads)
            own = 1.0 if uniform else float(world.sizes[k])
            total = base.add_scaled(total, own, base.subtract(local, params))
            weight += own
        params = base.add_scaled(params, 1 / weight, total)
    return params


def close(a, b, tolerance=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=1e-5), a, b
    )


SGD, ONE = optax.sgd(ETA), optax.sgd(1.0)
FEDAVG = {
    "fedavg": (lambda: averaging.fedavg(LOSS, SGD, ONE), {}),
    "fedavg, uniform": (lambda: averaging.fedavg(LOSS, SGD, ONE), {"uniform": True}),
    "two epochs": (lambda: averaging.fedavg(LOSS, SGD, ONE), {"epochs": 2}),
    "fedprox": (lambda: averaging.fedavg(LOSS, SGD, ONE, prox=0.7), {"prox": 0.7}),
    "qffl, q = 0": (
        lambda: fair.qffl(LOSS, learning_rate=ETA, q=0.0),
        {"uniform": True},
    ),
    "mimelite without momentum": (lambda: mime.mime(LOSS, SGD, ONE, lite=True), {}),
    "ditto": (lambda: personal.ditto(LOSS, SGD, ONE, pull=0.5), {}),
    "apfl": (lambda: personal.apfl(LOSS, ONE, learning_rate=ETA), {}),
    "scaffold, first round": (
        lambda: control.scaffold(LOSS, learning_rate=ETA, server=ONE),
        {"uniform": True, "count": 1},
    ),
    "afl, its first lambda": (
        lambda: fair.afl(LOSS, SGD, ONE, domains=np.arange(11), learning_rate=1e-12),
        {"uniform": True},
    ),
}


@pytest.mark.parametrize("name", FEDAVG)
def test_where_it_has_to_be_fedavg(name):
    make, options = FEDAVG[name]
    world = worlds.make()
    played = {k: v for k, v in options.items() if k != "prox"}
    close(play(make(), world, **played), loop(world, **options))


def test_ifca_with_one_model_is_fedavg():
    world = worlds.make()
    stacked = jax.tree.map(lambda x: x[None], world.params)
    found = play(clusters.ifca(LOSS, SGD, ONE, models=1), world, params=stacked)
    close(jax.tree.map(lambda x: x[0], found), loop(world))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_with_equal_steps_is_fedavg(momentum):
    world = worlds.make(np.full(6, 10))
    sgd = optax.sgd(ETA, momentum=momentum or None)
    close(
        play(
            control.fednova(LOSS, learning_rate=ETA, server=ONE, momentum=momentum),
            world,
        ),
        play(averaging.fedavg(LOSS, sgd, ONE), world),
    )


K, COHORT = 20, np.array([1, 4, 7, 9, 15, 16, 18])
COUNTS = np.arange(5, 25)  # n_k
CHANCES = np.full(K, 0.25)
RULES = {
    "mean": rules.mean(),
    "mean over a constant": rules.mean(5.0),
    "by data": rules.by_data(),
    "capped": rules.capped_data(16.0),
    "capped over a constant": rules.capped_data(16.0, COUNTS, CHANCES),
    "horvitz_thompson": rules.horvitz_thompson(COUNTS, CHANCES),
    "hajek": rules.hajek(COUNTS, CHANCES),
}


def linear(params, example, key):
    """A loss of constant gradient: after t steps y - x = -ETA t x_k."""
    del key
    return jnp.vdot(params, example["x"])


@pytest.mark.parametrize("name", RULES)
def test_fednova_steps_by_the_mean_length_under_every_rule_of_weights(name):
    rule = RULES[name]
    made = rounds.make(
        control.fednova(linear, learning_rate=ETA, server=ONE),
        chain.chain(weighting.of(rule)),
        population=K,
        settings=one_device(batch_size=1, capacity=8),
    )
    pulls = np.random.default_rng(0).normal(size=(K, 3)).astype(np.float32)
    weights = rule.of(COHORT, COUNTS[COHORT])
    divisor = rule.total or weights.sum()
    for steps in (np.full(7, 3), np.arange(1, 8)):
        state, _ = made.run(
            made.init(jnp.zeros(3)),
            jax.random.key(0),
            rounds.Chosen(COHORT, steps, weights, rule.total),
            lambda handed: ({"x": jnp.asarray(pulls)}, np.repeat(COHORT, handed)),
        )
        length = (weights * steps).sum() / weights.sum()
        directions = -ETA * (weights @ pulls[COHORT]) / divisor
        np.testing.assert_allclose(
            state.server.params, length * directions, rtol=1e-5, atol=1e-7
        )
        if len(set(steps)) == 1:  # then it is the sum of s_k (y_k - x) over W: FedAvg
            fedavg = (weights * steps) @ pulls[COHORT] * -ETA / divisor
            np.testing.assert_allclose(length * directions, fedavg, rtol=1e-6)


@pytest.mark.parametrize(
    ("momentum", "prox"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.5)], ids=["plain", "m", "p"]
)
def test_length_of_fednova_is_that_of_constant_gradients(momentum, prox):
    # With the gradient 1 everywhere, y - x = -eta * length.
    def linear(params, example, key):
        del key, example
        return params["w"]

    program = control.fednova(
        linear, learning_rate=0.1, server=ONE, momentum=momentum, prox=prox
    ).program
    world = worlds.make(np.array([5, 20, 35]))
    model = averaging.Model({"w": jnp.float32(0)}, jnp.float32(1))
    swept = worlds.run(world, program, model, weights=np.array([0, 0, 1.0]))
    y, length, rate = 0.0, 0.0, 0.0
    for _ in range(7):
        rate = momentum * rate + 1 + (prox * y if prox else 0.0)
        y -= 0.1 * rate
    length = 64 * float(swept.totals.message.length)
    # The direction is y / length: of a constant gradient without prox -eta exactly.
    assert length * float(swept.totals.message.direction["w"]) == pytest.approx(y)
    assert length == pytest.approx(-y / 0.1, rel=1e-5)


def test_feddyn_first_step_is_twice_the_mean_change():
    world = worlds.make()
    small = play(control.feddyn(LOSS, SGD, alpha=1e-5), world, count=1, uniform=True)
    averaged = loop(world, count=1, uniform=True)
    busy = (world.sizes > 0).mean()  # clients that took part, of all
    expected = jax.tree.map(
        lambda x, y: x + (1 + busy) * (y - x), world.params, averaged
    )
    close(small, expected, 2e-4)


def test_scaffold_by_its_formulas():
    world = worlds.make()
    people = len(world.sizes)
    found = play(
        control.scaffold(LOSS, learning_rate=ETA, server=ONE),
        world,
        count=3,
        uniform=True,
        memory=True,
    )
    gradient = jax.jit(worlds.mean_gradient)
    params, c = world.params, base.zeros(world.params)
    own = [base.zeros(params) for _ in range(people)]
    busy = np.flatnonzero(world.sizes)
    for _ in range(3):
        changes, moves = [], []
        for k in busy:
            y, steps = params, 0
            for rows in worlds.batches(world, k, BATCH, 1):
                grads = base.add(base.subtract(gradient(y, rows), own[k]), c)
                y, steps = base.add_scaled(y, -ETA, grads), steps + 1
            change = base.subtract(y, params)
            fresh = base.subtract(own[k], c)
            fresh = base.add_scaled(fresh, -1 / (steps * ETA), change)
            changes.append(change)
            moves.append(base.subtract(fresh, own[k]))
            own[k] = fresh
        for change in changes:
            params = base.add_scaled(params, 1 / len(busy), change)
        for move in moves:
            c = base.add_scaled(c, 1 / people, move)
    close(found.server.params, params)
    close(found.server.control, c)
    for k in range(people):
        close(jax.tree.map(lambda x, k=k: x[k], found.memory[0]), own[k])


def test_mime_by_its_formulas():
    world = worlds.make()
    momentum = optax.sgd(ETA, momentum=0.9)
    found = play(mime.mime(LOSS, momentum, ONE), world, count=2)
    gradient = jax.jit(worlds.mean_gradient)
    params = world.params
    statistics = momentum.init(params)
    busy = np.flatnonzero(world.sizes)
    share = world.sizes / world.sizes.sum()
    for _ in range(2):
        c = base.zeros(params)
        for k in busy:
            c = base.add_scaled(c, share[k], gradient(params, world.rows(k)))
        total = base.zeros(params)
        for k in busy:
            y = params
            for rows in worlds.batches(world, k, BATCH, 1):
                grads = base.subtract(gradient(y, rows), gradient(params, rows))
                updates, _ = momentum.update(base.add(grads, c), statistics, y)
                y = base.add(y, updates)
            total = base.add_scaled(total, share[k], base.subtract(y, params))
        _, statistics = momentum.update(c, statistics, params)
        params = base.add(params, total)
    close(found, params)


def test_qffl_by_its_formulas():
    world = worlds.make()
    q = 2.0
    found = play(fair.qffl(LOSS, learning_rate=ETA, q=q), world, count=1, uniform=True)
    params = world.params
    gradient = jax.jit(worlds.mean_gradient)
    pull, bound = base.zeros(params), 0.0
    for k in np.flatnonzero(world.sizes):
        y = params
        for rows in worlds.batches(world, k, BATCH, 1):
            y = base.add_scaled(y, -ETA, gradient(y, rows))
        delta = base.scaled(1 / ETA, base.subtract(params, y))
        value = jax.vmap(lambda row: LOSS(params, row, None))(world.rows(k)).mean()
        pull = base.add_scaled(pull, value**q, delta)
        square = optax.tree.norm(delta, squared=True)
        bound += q * value ** (q - 1) * square + value**q / ETA
    close(found, base.add_scaled(params, -1 / bound, pull))


def test_afl_moves_lambda_towards_the_domain_with_the_largest_loss():
    world = worlds.make()
    domains = np.arange(11) % 2
    algorithm = fair.afl(LOSS, SGD, ONE, domains=domains, learning_rate=0.5)
    found = play(algorithm, world, count=1, uniform=True, memory=True).server.weights
    losses = np.zeros(11)
    for k in np.flatnonzero(world.sizes):
        rows = world.rows(k)
        losses[k] = jax.vmap(lambda row: LOSS(world.params, row, None))(rows).mean()
    busy = world.sizes > 0
    means = np.array([losses[busy & (domains == d)].mean() for d in (0, 1)])
    point = 0.5 + 0.5 * means
    # On the segment the nearest point takes off the same from both, if both stay > 0.
    expected = np.clip(point - (point.sum() - 1) / 2, 0, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_afl_hears_no_loss_of_a_client_that_is_not_heard():
    algorithm = fair.afl(
        linear, SGD, ONE, domains=np.arange(3), learning_rate=0.5
    )._replace(first=fair.mean_loss(lambda params, example, key: example["x"].sum()))
    made = rounds.make(
        algorithm,
        chain.chain(),
        population=3,
        settings=one_device(batch_size=1, capacity=4),
    )
    losses = np.array([0.1, 0.3, 90.0])
    data = {"x": jnp.asarray(losses[:, None], jnp.float32)}
    for arrived, said in (
        # 1/3 + [0.05, 0.15, 0], less the mean of what was added.
        ([1, 1, 0], 1 / 3 + np.array([0.05, 0.15, 0.0]) - 0.2 / 3),
        ([1, 1, 1], [0, 0, 1]),
    ):
        # The largest number first: places are not numbers.
        chosen = rounds.Chosen(
            np.arange(3)[::-1],
            np.ones(3, int),
            np.ones(3),
            arrived=np.bool_(arrived[::-1]),
        )
        state, _ = made.run(
            made.init(jnp.zeros(1)),
            jax.random.key(0),
            chosen,
            lambda handed: (data, np.repeat([2, 1, 0], handed)),
        )
        np.testing.assert_allclose(state.server.weights, said, atol=1e-6)


def test_a_message_that_is_no_number_is_not_remembered():
    world = worlds.make(np.full(2, 5))
    world.data["x"][:5] = np.nan
    state = play(
        control.scaffold(LOSS, learning_rate=ETA, server=ONE),
        world,
        count=1,
        uniform=True,
        memory=True,
        finite=False,
    )
    for leaf in jax.tree.leaves(state.memory[0]):
        assert not leaf[0].any()
        assert leaf[1].any()


def test_the_simplex():
    rng = np.random.default_rng(0)
    for _ in range(20):
        point = rng.normal(size=5)
        found = np.asarray(fair.project_to_simplex(jnp.asarray(point, jnp.float32)))
        assert found.min() >= 0
        assert found.sum() == pytest.approx(1, abs=1e-6)
        others = rng.dirichlet(np.ones(5), 500)
        best = np.square(found - point).sum()
        assert (np.square(others - point).sum(1) >= best - 1e-5).all()


def test_ifca_parts_clients_of_opposite_labels():
    world = worlds.make(np.full(8, 20), seed=3)
    flipped = np.repeat(np.arange(8) % 2, 20)
    y = (world.data["x"][:, 0] > 0).astype(np.int32)
    world.data["y"][:] = np.where(flipped == 1, 1 - y, y)
    keys = np.random.default_rng(1)
    stacked = jax.tree.map(
        lambda x: jnp.asarray(keys.normal(size=(2, *x.shape)), jnp.float32),
        world.params,
    )
    algorithm = clusters.ifca(LOSS, SGD, ONE, models=2)
    params = play(algorithm, world, count=15, epochs=3, params=stacked)
    losses = np.array(
        [
            [
                jax.vmap(lambda row, m=m: LOSS(m, row, None))(world.rows(k)).mean()
                for m in (jax.tree.map(lambda x, j=j: x[j], params) for j in (0, 1))
            ]
            for k in range(8)
        ]
    )
    choice = losses.argmin(1)
    assert (choice[::2] == choice[0]).all()
    assert (choice[1::2] == 1 - choice[0]).all()


def test_ifca_leaves_a_model_that_nobody_chose():
    world = worlds.make(np.full(5, 20))
    bad = {**world.params, "bias": jnp.asarray([50.0, 0.0, -50.0])}
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), world.params, bad)
    found = play(clusters.ifca(LOSS, SGD, ONE, models=2), world, params=stacked)
    close(jax.tree.map(lambda x: x[1], found), bad)
    close(jax.tree.map(lambda x: x[0], found), loop(world))


def test_fedrep_shares_the_body_and_keeps_the_head():
    world = worlds.make(np.full(4, 20))
    algorithm = personal.fedrep(
        LOSS, SGD, ONE, is_head=lambda path: "head" in path or "bias" in path
    )
    state = play(algorithm, world, count=1, uniform=True, memory=True)
    params = state.server.params
    np.testing.assert_array_equal(params["head"], world.params["head"])
    assert np.abs(params["body"] - world.params["body"]).max() > 1e-3
    gradient = jax.jit(worlds.mean_gradient)
    total = 0
    for k in range(4):
        y = world.params
        for number, rows in enumerate(worlds.batches(world, k, BATCH, 1)):
            grads = gradient(y, rows)
            moving = ("head", "bias") if number < 2 else ("body",)
            y = {n: y[n] - ETA * grads[n] if n in moving else y[n] for n in y}
        total = total + (y["body"] - world.params["body"]) / 4
        bias, head = (rows[k] for rows in state.memory[0])
        np.testing.assert_allclose(head, y["head"], atol=1e-6)
        np.testing.assert_allclose(bias, y["bias"], atol=1e-6)
    np.testing.assert_allclose(params["body"], world.params["body"] + total, atol=1e-6)


def test_fedrep_with_one_step_trains_head_and_body():
    world = worlds.make(np.full(3, BATCH))
    algorithm = personal.fedrep(LOSS, SGD, ONE, is_head=lambda path: "head" in path)
    state = play(algorithm, world, count=1, uniform=True, memory=True)
    gradient = jax.jit(worlds.mean_gradient)
    grads = [gradient(world.params, world.rows(k)) for k in range(3)]
    (heads,) = state.memory[0]
    for k in range(3):
        own = world.params["head"] - ETA * grads[k]["head"]
        np.testing.assert_allclose(heads[k], own, atol=1e-6)
    mean = sum(g["body"] for g in grads) / 3
    body = world.params["body"] - ETA * mean
    np.testing.assert_allclose(state.server.params["body"], body, atol=1e-6)


def test_personal_models_fit_their_client_better():
    world = worlds.make(np.full(6, 30), seed=5)
    ditto = personal.ditto(LOSS, SGD, ONE, pull=0.05)
    pfedme = personal.pfedme(
        LOSS, ONE, learning_rate=0.1, inner_learning_rate=ETA, pull=1.0
    )
    for algorithm in (ditto, pfedme):
        state = play(algorithm, world, count=5, epochs=3, memory=True)

        def mean(params, k):
            rows = world.rows(k)
            return jax.vmap(lambda row: LOSS(params, row, None))(rows).mean()

        own = [
            mean(jax.tree.map(lambda x, k=k: x[k], state.memory[0]), k)
            for k in range(6)
        ]
        shared = [mean(state.server.params, k) for k in range(6)]
        assert np.mean(own) < np.mean(shared)


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_server_optimizers_by_their_formulas(name):
    rate, eps, b1, b2 = 0.1, 1e-3, 0.9, 0.99
    optimizer = getattr(server_optimizers, name)(rate)
    if name == "fedadagrad":
        b1 = 0.0
    params = jnp.asarray([1.0, -2.0, 0.5])
    state = optimizer.init(params)
    x, m, v = np.asarray(params), np.zeros(3), np.full(3, eps**2)
    rng = np.random.default_rng(0)
    for _ in range(5):
        change = rng.normal(size=3)
        params, state = averaging.server_step(
            optimizer, params, state, jnp.asarray(change, jnp.float32)
        )
        m = b1 * m + (1 - b1) * change
        v = {
            "fedadagrad": v + change**2,
            "fedadam": b2 * v + (1 - b2) * change**2,
            "fedyogi": v - (1 - b2) * change**2 * np.sign(v - change**2),
        }[name]
        x = x + rate * m / (np.sqrt(v) + eps)
    np.testing.assert_allclose(params, x, rtol=1e-5)


def test_fedbuff_without_delay_is_fedavg():
    world = worlds.make(np.full(4, 10))
    algorithm = buffered.fedbuff(LOSS, SGD, ONE, versions=3)
    fresh = np.zeros(4, np.int32)
    found = play(algorithm, world, count=4, uniform=True, given=fresh)
    close(found, loop(world, count=4, uniform=True))


def test_fedbuff_starts_from_the_version_of_the_time():
    world = worlds.make(np.full(4, 10))
    algorithm = buffered.fedbuff(LOSS, SGD, ONE, versions=3)
    stale = np.array([0, 1, 2, 1], np.int32)
    state = play(algorithm, world, count=1, uniform=True, given=stale * 0, memory=True)
    versions = [world.params, state.server.params]
    state = play(algorithm, world, count=2, uniform=True, given=stale * 0, memory=True)
    versions.append(state.server.params)
    ring = state.server
    gradient = jax.jit(worlds.mean_gradient)
    expected = versions[2]
    for k, tau in enumerate(stale):
        begin = y = versions[2 - tau]
        for rows in worlds.batches(world, k, BATCH, 1):
            y = base.add_scaled(y, -ETA, gradient(y, rows))
        weight = 0.25 / np.sqrt(1 + tau)
        expected = base.add_scaled(expected, weight, base.subtract(y, begin))
    model = algorithm.model(ring)
    messages = worlds.run(
        world, algorithm.program, model, given=stale, weights=np.full(4, 0.25)
    ).totals.message
    close(base.add(versions[2], messages), expected)


def test_arrivals_of_a_buffer():
    seconds = {0: 1.0, 1: 1.0, 2: 2.5}
    flushes = list(
        buffered.schedule(
            lambda client, visit: seconds[client],
            lambda visit: visit % 3,
            concurrency=3,
            buffer=2,
            steps=4,
            versions=2,
        )
    )
    # At 1: 0 and 1 arrive; 0 and 1 begin at version 1 (visits 3, 4). At 2 again, 2 and
    # 0 begin (visits 5, 6) at version 2. At 2.5 client 2 of version 0 is too old.
    assert [f.clients.tolist() for f in flushes[:2]] == [[0, 1], [0, 1]]
    assert [f.staleness.tolist() for f in flushes[:2]] == [[0, 0], [0, 0]]
    assert [f.seconds for f in flushes[:2]] == [1.0, 2.0]
    assert flushes[2].dropped == 1
    assert all((f.staleness < 2).all() for f in flushes)
