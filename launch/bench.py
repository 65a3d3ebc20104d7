"""What a private step costs: the compiler's figures and the clock.

  python -m launch.bench --config=configs/bench_dp_step.py[:cost|time|smoke]
                         [--workdir=runs/bench] [--config.only=mlp ...]

Every method makes the same step, new_params = params - rate * gradient / B, on the same
random data: the plain step uses the gradient of the batch's mean loss, the private ones
the sum of clipped gradients. Noise is left out everywhere; it is the same for all.

Wall-clock: one process, compilation apart, all methods once a round in rotating order,
short steps repeated within a sample; medians, quartiles, and the median over rounds of
the ratio to the plain step of the same round. jax-privacy is screened at every
microbatch that divides the batch, and its two best take part in the rounds; the better
median counts. What takes 20 times the plain step is screened only.

With `--config.opacus_python=/path/to/python` of an environment that has torch 2.13.0
and opacus 1.6.0, Opacus takes part in the same rounds from a process of its own
(`launch/bench_torch.py`, transformers and MLP); its ratio is to PyTorch's plain step.

Writes bench.json and bench.md to the workdir after every model.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from launch import hlo_cost
from trustml import task as task_lib
from trustml.models import bilstm, cnn, mlp, transformer
from trustml.privacy import clipping

_CONFIG = config_flags.DEFINE_config_file("config", None, "what to measure")
_WORKDIR = flags.DEFINE_string("workdir", "runs/bench", "where the tables are written")

PLAIN = "non_private"
PEER = "jax_privacy"
TORCH = "torch"
_HOPELESS = 20  # times the plain step: screened, but left out of the rounds
_COSTS = ("flops", "bytes", "temp_bytes", "product_flops")

Step = Callable[[Any, dict[str, Any], jax.Array], Any]


def _tokens(spec, rng):
    shape = (spec.batch_size, spec.length)
    return {
        "tokens": rng.integers(1, spec.vocabulary_size, shape).astype(np.int32),
        "length": np.full(spec.batch_size, spec.length, np.int32),
    }


def build(spec, seed: int) -> tuple[task_lib.Task, dict[str, np.ndarray]]:
    """The task of one entry of `config.models`, and a random batch [B, ...] for it."""
    rng = np.random.default_rng(seed)
    size = (spec.batch_size,)
    if spec.kind == "transformer":
        task = transformer.classifier(
            spec.vocabulary_size,
            10,
            max_length=spec.length,
            width=spec.width,
            depth=spec.depth,
            heads=spec.heads,
            remat=spec.remat,
            scan_layers=spec.scan_layers,
        )
        batch = _tokens(spec, rng) | {"label": rng.integers(10, size=size)}
    elif spec.kind == "bilstm":
        task = bilstm.task(
            spec.vocabulary_size,
            spec.classes,
            spec.slots,
            width=spec.width,
            hidden=spec.hidden,
        )
        batch = _tokens(spec, rng) | {
            "label": rng.integers(spec.classes, size=size),
            "slots": rng.integers(spec.slots, size=(*size, spec.length)),
        }
    elif spec.kind == "mlp":
        task = mlp.task(spec.features, spec.classes, hidden=spec.hidden)
        features = rng.normal(size=(*size, spec.features))
        batch = {
            "features": features.astype(np.float32),
            "label": rng.integers(spec.classes, size=size),
        }
    elif spec.kind == "cnn":
        task = cnn.task(spec.image_shape, spec.classes, channels=spec.channels)
        image = rng.normal(size=(*size, *spec.image_shape)).astype(np.float32)
        batch = {"image": image, "label": rng.integers(spec.classes, size=size)}
    else:
        raise ValueError(
            f"config.models kind={spec.kind!r} is not one of transformer, bilstm, mlp, "
            "cnn."
        )
    return task, {
        k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in batch.items()
    }


def has_peer() -> bool:
    """Whether jax-privacy is installed; it is no dependency of the library."""
    return importlib.util.find_spec("jax_privacy") is not None


def steps(task: task_lib.Task, size: int, config) -> dict[str, Step]:
    """Every method's step by name; a microbatch m is written `name@m`."""

    def update(params, sums):
        rate = config.learning_rate / size
        return jax.tree.map(lambda p, s: p - rate * s, params, sums)

    def plain(params, batch, key):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(size))

        def total(params):
            return jnp.sum(jax.vmap(task.loss, (None, 0, 0))(params, batch, keys))

        return update(params, jax.grad(total)(params))

    def ours(method, microbatch_size=None):
        clipper = clipping.clipped_grad(
            task.loss,
            l2_clip_norm=config.l2_clip_norm,
            method=method,
            microbatch_size=microbatch_size,
        )

        def step(params, batch, key):
            mask = jnp.ones(size, bool)
            return update(params, clipper(params, batch, mask, key)[0])

        return step

    found: dict[str, Step] = {
        PLAIN: plain,
        "book_keeping": ours("book_keeping"),
        "vmap": ours("vmap"),
    }
    for small in (1, config.microbatch_size):  # 1: a loop over the examples
        if small < size:
            found[f"vmap@{small}"] = ours("vmap", small)
    if not has_peer():
        return found

    import jax_privacy

    def peer(microbatch):
        def step(params, batch, key):
            clipped = jax_privacy.clipped_grad(
                lambda params, example: task.loss(params, example, key),
                l2_clip_norm=config.l2_clip_norm,
                keep_batch_dim=False,
                microbatch_size=microbatch or None,
            )
            return update(params, clipped(params, batch))

        return step

    for microbatch in config.peer_microbatches:
        if microbatch < size and size % max(microbatch, 1) == 0:
            found[f"{PEER}@{microbatch or 'none'}"] = peer(microbatch)
    return found


@contextlib.contextmanager
def torch_steps(spec, python: str):
    """Steps of PyTorch and Opacus by name, each made by a process that waits for us."""
    if not python or spec.kind not in ("transformer", "mlp"):
        yield {}
        return
    script = str(pathlib.Path(__file__).with_name("bench_torch.py"))
    command, pipe = [python, "-W", "ignore", script], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        requests, answers = process.stdin, process.stdout
        assert requests and answers

        def ask(line):
            requests.write(line + "\n")
            requests.flush()
            answer = answers.readline()
            if not answer:
                raise RuntimeError(
                    f"config.opacus_python={python!r} stopped; see above."
                )
            return answer

        def step(method):
            return lambda *_: ask(method) and None

        methods = json.loads(ask(json.dumps(spec.to_dict())))["methods"]
        yield {f"{TORCH}_{method}": step(method) for method in methods}
        requests.close()


def compile_all(found: dict[str, Step], arguments, wanted, say) -> dict[str, Any]:
    """Compiled steps of the `wanted` names."""
    compiled = {}
    for name in wanted:
        start = time.perf_counter()
        compiled[name] = jax.jit(found[name]).lower(*arguments).compile()
        say(f"  compiled {name} in {time.perf_counter() - start:.1f} s")
    return compiled


def _sample(fn, arguments, repeats: int) -> float:
    start, out = time.perf_counter(), None
    for _ in range(repeats):
        out = fn(*arguments)
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / repeats


def _quartiles(values) -> list[float]:
    return [float(q) for q in np.quantile(values, [0.25, 0.75])]


def measure(compiled: dict[str, Any], arguments, config, say) -> dict[str, Any]:
    """Wall-clock of compiled steps: {name: {median, quartiles, ratio, ...}}."""
    first = {name: _sample(fn, arguments, 1) for name, fn in compiled.items()}
    fastest = min((s for n, s in first.items() if n.startswith(PEER)), default=0.0)
    for name, fn in compiled.items():
        # A second and third look, but not at what is hopeless (minutes per step).
        if not name.startswith(PEER) or first[name] < 3 * fastest:
            again = (_sample(fn, arguments, 1) for _ in range(2))
            first[name] = min(first[name], *again)
    peers = sorted((n for n in first if n.startswith(PEER)), key=first.__getitem__)
    for name in peers:
        say(f"  screened {name}: {1e3 * first[name]:.1f} ms")
    slow = {n for n in first if first[n] > _HOPELESS * first[PLAIN]} - set(peers[:1])
    slow = {n for n in slow if not n.startswith(TORCH)}
    names = [n for n in compiled if n not in slow and n not in peers[2:]]
    repeats = {n: max(1, round(config.seconds_per_sample / first[n])) for n in names}
    samples = {n: [] for n in names}
    for turn in range(config.rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(_sample(compiled[name], arguments, repeats[name]))
    seconds = {n: np.array(s) for n, s in samples.items()}
    result: dict[str, Any] = {"screened_seconds": first}
    for name, s in seconds.items():
        ratio = s / seconds[f"{TORCH}_{PLAIN}" if name.startswith(TORCH) else PLAIN]
        result[name] = {
            "median_seconds": float(np.median(s)),
            "quartiles_seconds": _quartiles(s),
            "min_seconds": float(s.min()),
            "ratio_median": float(np.median(ratio)),
            "ratio_quartiles": _quartiles(ratio),
            "rounds": len(s),
            "steps_per_sample": repeats[name],
        }
        say(
            f"  {name}: {1e3 * np.median(s):.2f} ms, {np.median(ratio):.2f} x plain "
            f"[{_quartiles(ratio)[0]:.2f}, {_quartiles(ratio)[1]:.2f}]"
        )
    if peers:
        best = min(
            (n for n in peers[:2] if n in result),
            key=lambda n: result[n]["median_seconds"],
        )
        result["best_peer"] = best
        result["faster_than_peer"] = float(
            np.median(seconds[best] / seconds["book_keeping"])
        )
        say(f"  book_keeping is {result['faster_than_peer']:.2f} x faster than {best}")
    cost = {n: seconds[n] / seconds[f"{TORCH}_{PLAIN}"] for n in seconds if TORCH in n}
    for name in cost.keys() - {f"{TORCH}_{PLAIN}"}:
        gain = cost[name] / (seconds["book_keeping"] / seconds[PLAIN])
        result[name]["book_keeping_cheaper_by"] = float(np.median(gain))
        say(f"  book_keeping is {np.median(gain):.2f} x cheaper than {name}")
    return result


def run_model(name: str, spec, config, say) -> dict[str, Any]:
    """Both kinds of figures of one model."""
    task, batch = build(spec, config.seed)
    found = steps(task, spec.batch_size, config)
    timed = config.time and spec.measure in ("time", "both")
    costed = config.cost and spec.measure in ("cost", "both")
    key = jax.random.key(config.seed)
    params = (jax.jit if timed else lambda f: lambda k: jax.eval_shape(f, k))(
        task.init
    )(key)
    count = sum(x.size for x in jax.tree.leaves(params))
    say(f"{name}: {count / 1e6:.1f} M parameters")
    arguments = (params, jax.tree.map(jnp.asarray, batch), key)
    wanted = list(found) if timed else _few(found, config.microbatch_size)
    compiled = compile_all(found, arguments, wanted, say)
    entry: dict[str, Any] = {"parameters": count, "spec": spec.to_dict()}
    if costed:
        costs = {
            n: hlo_cost.of(compiled[n]) for n in _few(found, config.microbatch_size)
        }
        base = costs[PLAIN]
        ratios = {
            n: {k: c[k] / base[k] if base[k] else None for k in _COSTS}
            for n, c in costs.items()
        }
        entry["compiler"] = {"absolute": costs, "ratio": ratios}
        clipper = clipping.clipped_grad(task.loss, l2_clip_norm=config.l2_clip_norm)
        example = jax.tree.map(lambda x: x[0], batch)
        entry["materialized_leaves"] = clipper.explain(params, example).materialized
        for n, r in ratios.items():
            say("  " + n + ": " + ", ".join(f"{k} {v:.3f}" for k, v in r.items() if v))
    if timed:
        with torch_steps(spec, config.opacus_python) as others:
            entry["wall_clock"] = measure(compiled | others, arguments, config, say)
    return entry


def _few(found, microbatch_size) -> list[str]:
    """The steps whose compiler cost is reported: not every microbatch of the peer."""
    peers = (f"{PEER}@none", f"{PEER}@{microbatch_size}")
    return [n for n in found if not n.startswith(PEER) or n in peers]


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown tables."""
    where = report["machine"]
    lines = [
        "# Cost of a private step",
        "",
        f"JAX {where['jax']}, {where['backend']}, {where['cores']} cores, "
        f"{where['machine']}. Ratios are to the plain SGD step of the same model in "
        "the same framework.",
        *(
            []
            if where["peer"]
            else ["", "jax-privacy is not installed: no peer columns."]
        ),
    ]
    models = report["models"]
    costed = {n: m["compiler"] for n, m in models.items() if "compiler" in m}
    if costed:
        lines += [
            "",
            "## Compiler",
            "",
            "FLOPs and bytes as XLA counts them, a loop's body once: too few for "
            "methods that loop over microbatches. Products: the same for matrix "
            "products and convolutions, with loops of known length in full.",
            "",
            "| model | method | FLOPs | bytes | temporary memory | products | MiB |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, cost in costed.items():
            for method, r in cost["ratio"].items():
                cells = [f"{r[k]:.2f}" if r[k] else "" for k in _COSTS]
                mebi = cost["absolute"][method]["temp_bytes"] / 2**20
                lines.append(
                    f"| {name} | {method} | {' | '.join(cells)} | {mebi:.0f} |"
                )
    timed = {n: m["wall_clock"] for n, m in models.items() if "wall_clock" in m}
    if timed:
        lines += [
            "",
            "## Wall-clock",
            "",
            "| model | method | median ms | quartiles | ratio by round | quartiles |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for name, wall in timed.items():
            for method, w in wall.items():
                if not isinstance(w, dict) or "ratio_median" not in w:
                    continue
                low, high = (1e3 * q for q in w["quartiles_seconds"])
                first, third = w["ratio_quartiles"]
                lines.append(
                    f"| {name} | {method} | {1e3 * w['median_seconds']:.2f} | "
                    f"{low:.2f} to {high:.2f} | {w['ratio_median']:.2f} | "
                    f"{first:.2f} to {third:.2f} |"
                )
        cheaper = [
            f"| {name} | {method} | {w['book_keeping_cheaper_by']:.2f} |"
            for name, wall in timed.items()
            for method, w in wall.items()
            if isinstance(w, dict) and "book_keeping_cheaper_by" in w
        ]
        if cheaper:
            lines += [
                "",
                "How much smaller book-keeping's ratio is than Opacus's, each to the "
                "plain step of its own framework:",
                "",
                "| model | method | by |",
                "| --- | --- | --- |",
                *cheaper,
            ]
        if where["peer"]:
            lines += ["", "| model | best peer | book-keeping is faster by |"]
            lines += ["| --- | --- | --- |"]
            lines += [
                f"| {n} | {w['best_peer']} | {w['faster_than_peer']:.2f} |"
                for n, w in timed.items()
            ]
    return "\n".join(lines) + "\n"


def write(workdir: pathlib.Path, report: dict[str, Any]) -> None:
    """bench.json and bench.md."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "bench.json").write_text(json.dumps(report, indent=1))
    (workdir / "bench.md").write_text(markdown(report))


def main(argv):
    """Runs the models of the config, one after the other."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}.")
    config = _CONFIG.value
    if config is None:
        raise app.UsageError("--config is missing; try configs/bench_dp_step.py.")
    asked = {"both"} | {k for k in ("cost", "time") if config[k]}
    models = {
        n: s
        for n, s in config.models.items()
        if config.only in n and s.measure in asked
    }
    if not models:
        names = ", ".join(n for n, s in config.models.items() if s.measure in asked)
        raise app.UsageError(f"config.only={config.only!r} is in none of {names}.")
    start = time.perf_counter()

    def say(text):
        print(f"[{time.perf_counter() - start:6.0f} s] {text}", flush=True)

    peer = has_peer()
    report: dict[str, Any] = {
        "machine": {
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "peer": peer,
        },
        "command": " ".join(sys.argv),
        "models": {},
    }
    if not peer:
        say("jax-privacy is not installed: no peer columns")
    workdir = pathlib.Path(_WORKDIR.value)
    for name, spec in models.items():
        report["models"][name] = run_model(name, spec, config, say)
        write(workdir, report)
    say(f"wrote {workdir / 'bench.json'} and {workdir / 'bench.md'}")


if __name__ == "__main__":
    app.run(main)
