"""What a federated round costs: lanes against a scan, a loop, and other simulators.

  python -m launch.bench_federated --config=configs/bench_federated.py[:smoke]
                                   [--workdir=runs/bench_fl] [--config.only=mnist ...]

Every way makes the same rounds of FedAvg over the same clients, one local epoch of SGD
at the same batch size. `scan` and `loop` make as many plain SGD steps, in one compiled
loop and with one dispatch for each; they shuffle nothing and sum nothing. `fedjax`
fills the last batch of a client, and makes as many steps. Ours are whole rounds of
`federated.rounds`, shuffled, scheduled, summed and applied; a round is not waited for
before the next is prepared. `config.devices=2` deals the lanes to two devices, each one
core of a CPU with two; the other ways stay on the first, whose products use all cores.
One process, compilation apart, all ways once in every repetition in rotating order; the
least of the repetitions counts.

Where the model convolves, `scan` and `loop` exist a second time with the rewritten
loss. Writes bench.json to the workdir after every scene, with the choice of the probe
and the mean utilization of 200 cohorts.
"""

import importlib.util
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from ml_collections import config_flags

from launch import bench_federated_peers as peers
from launch import bench_scenes
from trustml import parallel, rng
from trustml.experiments import lane_probe
from trustml.federated import im2col, rounds, schedule, visits, weighting
from trustml.federated.aggregation import chain
from trustml.federated.aggregation import weighting as links
from trustml.federated.algorithms import averaging, base

SCAN, LOOP, PRODUCTS = "scan", "loop", "_im2col"
_COHORTS = 200  # for the utilization

Way = Callable[[int], Any]  # makes so many rounds and waits for the last


class Measured(NamedTuple):
    """Seconds of a round, and how often it was looked at."""

    seconds: float
    repetitions: int


def federation(scene: bench_scenes.Scene, rate: float, devices) -> lane_probe.Build:
    """(candidate, population, narrowing=True) -> FedAvg over the scene's clients."""

    def build(candidate, population, narrowing=True):
        loss = scene.loss
        if candidate.kernel == "im2col":
            loss = im2col.rewrite(loss)
        return rounds.make(
            averaging.fedavg(loss, optax.sgd(rate), optax.sgd(1.0)),
            chain.chain(links.of(weighting.by_data())),
            population=population,
            settings=rounds.Settings(
                jit=jax.jit,
                lanes=candidate.lanes,
                narrowing=narrowing,
                batch_size=scene.batch_size,
                capacity=max(128, candidate.lanes),
                group=candidate.group,
                devices=devices,
            ),
        )

    return build


def ours(scene: bench_scenes.Scene, made: rounds.Rounds, devices) -> Way:
    """Whole rounds in the lanes."""
    words = np.array([1, 2], np.uint32)
    data = placed(scene, devices)
    root, key_of = rng.root(0), jax.jit(rounds.round_key)
    state = made.init(scene.params, root)

    def run(count):
        nonlocal state
        for number in range(count):
            clients = scene.cohorts[number % len(scene.cohorts)]
            sizes = scene.sizes[clients]

            def place(handed, clients=clients, sizes=sizes, number=number):
                starts = scene.offsets[clients]
                local = visits.rows(
                    words, number, clients, sizes, handed, starts=starts
                )
                return data, local

            chosen = rounds.Chosen(clients, sizes, sizes.astype(float))
            state, _ = made.run(state, key_of(root, number), chosen, place)
        return jax.block_until_ready(state.server)

    return run


def placed(scene: bench_scenes.Scene, devices):
    """The rows on every device."""
    if len(devices) > 1:
        return parallel.replicate(scene.columns, devices)
    return jax.tree.map(jnp.asarray, scene.columns)


def plain(scene: bench_scenes.Scene, loss: base.Loss, rate: float) -> tuple[Way, Way]:
    """Centralised SGD: one scan for a round, and one dispatch for a step."""
    gradient = base.objective(loss)
    size = scene.batch_size
    mask, data = np.ones(size, bool), jax.tree.map(jnp.asarray, scene.columns)
    draw = np.random.default_rng(0).integers
    many = [scene.steps(clients) for clients in scene.cohorts]
    rows = draw(scene.offsets[-1], size=(max(many), size)).astype(np.int32)

    def step(params, batch):
        grads, _ = gradient(params, batch, mask, jax.random.key(0))
        return jax.tree.map(lambda p, g: p - rate * g, params, grads)

    @jax.jit
    def scanned(params, data, rows):
        def body(params, index):
            return step(params, jax.tree.map(lambda x: x[index], data)), None

        return jax.lax.scan(body, params, rows)[0]

    one = jax.jit(step)

    def scan(count):
        params = scene.params
        for number in range(count):
            params = scanned(params, data, rows[: many[number % len(many)]])
        return jax.block_until_ready(params)

    def loop(count):
        params = scene.params
        for number in range(count):
            for index in rows[: many[number % len(many)]]:
                batch = {name: x[index] for name, x in scene.columns.items()}
                params = one(params, batch)
        return jax.block_until_ready(params)

    return scan, loop


def utilization(scene: bench_scenes.Scene, lanes: int, devices: int) -> float:
    """Mean useful share of the executed lane-steps, over random cohorts."""
    draw = np.random.default_rng(1)
    cut = -(-scene.sizes // scene.batch_size)
    found = []
    for _ in range(_COHORTS):
        some = draw.choice(len(cut), scene.cohorts.shape[1], replace=False)
        made = schedule.make(cut[some], lanes=lanes, devices=devices)
        found.append(made.utilization)
    return float(np.mean(found))


def measure(ways: dict[str, Way], rounds_: int, config, say) -> dict[str, Measured]:
    """Seconds of a round of each way; the least of the repetitions."""
    once, repeats = {}, {}
    for name, run in ways.items():
        begin = time.perf_counter()
        run(rounds_)  # compiles all
        say(f"  {name}: first rounds in {time.perf_counter() - begin:.1f} s")
        begin = time.perf_counter()
        run(rounds_)
        once[name] = (time.perf_counter() - begin) / rounds_
        whole = config.seconds_per_sample / rounds_ / once[name]
        repeats[name] = rounds_ * max(1, round(whole))
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(config.rounds):
        names = list(ways)
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            begin = time.perf_counter()
            ways[name](repeats[name])
            samples[name].append((time.perf_counter() - begin) / repeats[name])
    return {name: Measured(min(s), len(s)) for name, s in samples.items()}


def run_scene(name: str, spec, config, say) -> dict[str, Any]:
    """All ways of one scene."""
    scene = bench_scenes.build(spec, config.seed, rounds=spec.rounds)
    count = sum(x.size for x in jax.tree.leaves(scene.params))
    steps = float(np.mean([scene.steps(clients) for clients in scene.cohorts]))
    say(f"{name}: {count} parameters, {len(scene.sizes)} clients, {steps:.0f} steps")
    devices = parallel.devices(config.devices)
    build = federation(scene, config.learning_rate, devices)
    example = jax.tree.map(lambda x: x[0], scene.columns)
    shapes = scene.params, example, jax.random.key(0)
    convolves = im2col.convolutions(scene.loss, *shapes) > 0
    data = placed(scene, devices)
    begin = time.perf_counter()
    timings = lane_probe.find(
        lane_probe.candidates(
            kernels=lane_probe.KERNELS if convolves else ("vmap",),
            lanes=config.lanes,
            group=0,
            cohort=scene.cohorts.shape[1],
            lane_bytes=2 * 4 * count,
            free_bytes=2**32,
        ),
        build,
        scene.params,
        -(-scene.sizes[scene.cohorts[0]] // scene.batch_size),
        int(np.median(scene.sizes)),
        lambda handed: (data, np.arange(handed.sum()) % scene.offsets[-1]),
    )
    spent, chosen = time.perf_counter() - begin, timings[0].candidate
    for timing in timings:
        say(f"  probed {timing.candidate}: {timing.steps_per_second:.0f} steps/s")
    say(f"  {lane_probe.sentence(chosen)} (probe: {spent:.1f} s)")
    tried = {chosen.lanes, *config.also}
    ways: dict[str, Way] = {
        f"lanes_{lanes}": ours(
            scene, build(chosen._replace(lanes=lanes), len(scene.sizes)), devices
        )
        for lanes in sorted(tried)
    }
    ways[SCAN], ways[LOOP] = plain(scene, scene.loss, config.learning_rate)
    if convolves:
        rewritten = im2col.rewrite(scene.loss)
        pair = plain(scene, rewritten, config.learning_rate)
        ways[SCAN + PRODUCTS], ways[LOOP + PRODUCTS] = pair
        ways["lanes_as_written"] = ours(
            scene, build(chosen._replace(kernel="vmap"), len(scene.sizes)), devices
        )
    if importlib.util.find_spec("fedjax"):
        ways["fedjax"] = peers.fedjax(scene, config.learning_rate)
    if importlib.util.find_spec("pfl") and spec.kind == "mlp":
        ways["pfl"] = peers.pfl(scene, config.learning_rate)
    found = measure(ways, spec.rounds, config, say)
    if importlib.util.find_spec("flwr") and spec.kind == "mlp":
        seconds = peers.flower_seconds(spec, config.seed, config.learning_rate, 5)
        found["flower"] = Measured(min(seconds), len(seconds))
    best = min(m.seconds for n, m in found.items() if n.startswith("lanes_"))
    entry: dict[str, Any] = {
        "spec": spec.to_dict(),
        "parameters": count,
        "steps_of_a_round": steps,
        "chosen": chosen._asdict(),
        "probe_seconds": spent,
        "utilization": {
            str(lanes): utilization(scene, lanes, len(devices))
            for lanes in sorted(tried | {16})
        },
        "ways": {},
    }
    for way, m in found.items():
        entry["ways"][way] = {
            "round_seconds": m.seconds,
            "steps_per_second": steps / m.seconds,
            "relative_to_scan": found[SCAN].seconds / m.seconds,
            "ours_faster_by": m.seconds / best,
            "repetitions": m.repetitions,
        }
        say(
            f"  {way}: {1e3 * m.seconds:.2f} ms a round, {steps / m.seconds:.0f} "
            f"steps/s, {found[SCAN].seconds / m.seconds:.2f} of scan; ours is "
            f"{m.seconds / best:.2f} x as fast"
        )
    for lanes, share in entry["utilization"].items():
        say(f"  utilization at L = {lanes} a device: {share:.3f}")
    return entry


def main(argv):
    """Runs the scenes of the config, one after the other."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}.")
    config = flags.FLAGS.config
    if config is None:
        raise app.UsageError("--config is missing; try configs/bench_federated.py.")
    scenes = {n: s for n, s in config.scenes.items() if config.only in n}
    if not scenes:
        names = ", ".join(config.scenes)
        raise app.UsageError(f"config.only={config.only!r} is in none of {names}.")
    if config.devices > 1:  # before anything else asks JAX for its devices
        jax.config.update("jax_num_cpu_devices", config.devices)
    start = time.perf_counter()

    def say(text):
        print(f"[{time.perf_counter() - start:6.0f} s] {text}", flush=True)

    report: dict[str, Any] = {
        "machine": {
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "cores": os.cpu_count(),
            "devices": config.devices,
            "machine": platform.machine(),
        },
        "command": " ".join(sys.argv),
        "scenes": {},
    }
    workdir = pathlib.Path(flags.FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    for name, spec in scenes.items():
        report["scenes"][name] = run_scene(name, spec, config, say)
        (workdir / "bench.json").write_text(json.dumps(report, indent=1))
    say(f"wrote {workdir / 'bench.json'}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "what to measure")
    flags.DEFINE_string("workdir", "runs/bench_fl", "where the table is written")
    app.run(main)
