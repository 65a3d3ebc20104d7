"""What fairness metrics cost beside their usual peers; prints a table in Markdown.

  python -m launch.bench_fairness [--only=SCENE] [--repetitions=5]

| scene | ours | peer |
|---|---|---|
| ranking | all areas of 10 identities, 20,000 rows; 200 replicates | scikit-learn |
| association | exact p of 24 tests x 13 layers of 8 against 8 | itertools and NumPy |
| association | CEAT, 50 + 50 words of 50 contexts, D = 768 | NumPy by draw, by pair |
| bootstrap | 4 rates of 4 groups, 20,000 rows, 1,000 replicates | fairlearn |
| sensitivity | one prediction's, one-hot and signed | the full Jacobian |
| likelihood | 1,508 pairs by a masked model of two layers | one masked text at a time |
| sampler | 100 tokens by a GPT-2 of four layers | the same without a cache |

One process; in every repetition the peer runs once, then ours three times, and the
least time of each counts. Ours is warm and its time ends when the result is there;
compilation has its own column, nan where more than one program is compiled. A peer that
made a part of the work has its time scaled. NumPy runs with one BLAS thread, which is
the faster way for its small products. The last column says how far the two differ in
what both computed.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from sklearn import metrics
from threadpoolctl import threadpool_limits

from launch import bench_fairness_models as model_scenes
from launch import bench_fairness_scenes as scenes
from trustml.fairness import ceat, permutation, random_effects, ranking

_ONLY = flags.DEFINE_string("only", "", "one scene, all where empty")
_REPETITIONS = flags.DEFINE_integer("repetitions", 5, "of each way; the least counts")

COLUMNS = ("peer", "work", "peer, s", "ours, s", "ratio", "compile, s", "largest error")


class Row(NamedTuple):
    """One line of the table."""

    peer: str
    work: str
    peer_seconds: float
    seconds: float
    compile_seconds: float
    error: float


def compare(
    peer: str, work: str, theirs: Callable, ours: Callable, args: Any, share: float = 1
) -> Row:
    """Both ways, interleaved, ours compiled; `theirs` makes `share` of the work."""
    start = time.perf_counter()
    program = jax.jit(ours).lower(*args).compile()
    compile_seconds = time.perf_counter() - start
    row = interleave(peer, work, theirs, program, args, share)
    return row._replace(compile_seconds=compile_seconds)


def interleave(
    peer: str, work: str, theirs: Callable, ours: Callable, args: Any, share: float = 1
) -> Row:
    """Both ways, both warm; `theirs` makes `share` of the work."""
    slow, fast, error = [], [], float("nan")
    for _ in range(_REPETITIONS.value):
        with threadpool_limits(1):
            start = time.perf_counter()
            want = np.asarray(theirs())
            slow.append((time.perf_counter() - start) / share)
        for _ in range(3):
            start = time.perf_counter()
            found = jax.block_until_ready(ours(*args))
            fast.append(time.perf_counter() - start)
        cut = np.asarray(found)[: len(want)]
        error = float(np.nanmax(np.abs(cut - want)))
    return Row(peer, work, min(slow), min(fast), float("nan"), error)


def ranking_rows() -> Iterator[Row]:
    """Ten identities at n = 20,000: one pass, and 200 replicates."""
    rng = np.random.default_rng(0)
    n, identities, replicates = 20_000, 10, 200
    y = rng.random(n) < 0.2
    member = rng.random((n, identities)) < rng.uniform(0.02, 0.3, identities)
    scores = np.round(rng.normal(size=n) + y, 3).astype(np.float32)  # ties

    def theirs_one(rows):
        s, label, m = scores[rows], y[rows], member[rows]
        out = [metrics.roc_auc_score(label, s)]
        for i in range(identities):
            sets = (m[:, i], m[:, i] != label, m[:, i] == label)
            out += [metrics.roc_auc_score(label[k], s[k]) for k in sets]
        return np.array(out)

    def flat(r):
        areas = jax.numpy.stack([r.subgroup, r.bpsn, r.bnsp], -1)
        areas = areas.reshape((*r.overall.shape, -1))
        return jax.numpy.concatenate([r.overall[..., None], areas], -1)

    def ours_one(scores, y, member):
        return flat(ranking.auc_bias(scores, y, member))

    work = f"31 areas, n = {n:,}"
    everyone = np.arange(n)
    args = (scores, y, member)
    yield compare("scikit-learn", work, lambda: theirs_one(everyone), ours_one, args)

    some = 10  # replicates of the peer

    def theirs():
        return np.array([theirs_one(rng.integers(0, n, n)) for _ in range(some)])

    def ours(key, *args):
        return flat(ranking.bootstrap(key, *args, replicates=replicates))

    work = f"the same, {replicates} replicates"
    row = compare(
        "scikit-learn",
        work + f" (peer made {some})",
        theirs,
        ours,
        (jax.random.key(0), *args),
        some / replicates,
    )
    yield row._replace(error=float("nan"))  # other random rows: nothing to compare


def association_rows() -> Iterator[Row]:
    """Exact p of many tests, and CEAT."""
    rng = np.random.default_rng(0)
    tests = rng.normal(size=(24 * 13, 16)).astype(np.float32)
    some = 6

    def theirs():
        return [enumerate_partitions(s, 8) for s in tests[:some]]

    table = permutation.partitions(8, 8)

    def ours(s):
        return permutation.test(s, table).p

    work = f"24 tests x 13 layers, 8 + 8, exact (peer made {some})"
    share = some / len(tests)
    yield compare("itertools, NumPy", work, theirs, ours, (tests,), share)

    words, contexts, width, draws, some = 25, 50, 768, 10_000, 500

    def vectors(shift):
        word = rng.normal(size=(words, 1, width)) + shift
        noise = rng.normal(size=(words, contexts, width))
        return (word + 1.5 * noise).astype(np.float32)

    direction = rng.normal(size=width)
    lists = [vectors(k * direction) for k in (0.05, 0.0, 0.3, -0.3)]
    pool = ceat.table(*lists)
    at = [np.asarray(x) for x in ceat.draw(jax.random.key(0), pool, draws)]
    of_targets, of_attributes = (
        np.concatenate(pair).reshape(-1, width) for pair in (lists[:2], lists[2:])
    )

    def effects_of(i, first, second):
        u, v = of_targets[first[i]], of_attributes[second[i]]
        u = u / np.linalg.norm(u, axis=1, keepdims=True)
        v = v / np.linalg.norm(v, axis=1, keepdims=True)
        cosines = u @ v.T
        s = cosines[:, :words].mean(1) - cosines[:, words:].mean(1)
        gap = s[:words].mean() - s[words:].mean()
        return gap / s.std(ddof=1), s.var(ddof=1)

    def theirs_ceat():
        return [effects_of(i, *at)[0] for i in range(some)]

    def by_pairs():
        return [pair_by_pair(of_targets[i], of_attributes[j]) for i, j in few]

    def pair_by_pair(targets, attributes):
        def cosine(u, v):
            return np.dot(u, v) / (np.linalg.norm(u) * np.linalg.norm(v))

        s = []
        for w in targets:
            all_of = [cosine(w, v) for v in attributes]
            s.append(np.mean(all_of[:words]) - np.mean(all_of[words:]))
        gap = np.mean(s[:words]) - np.mean(s[words:])
        return gap / np.std(s, ddof=1)

    few = [(at[0][i], at[1][i]) for i in range(20)]

    def ours_ceat(first, second, *lists):
        pool = ceat.table(*lists)
        effects, variances = ceat.effect_sizes(pool, first, second)
        ces = random_effects.combine(effects, variances).mean
        return jax.numpy.append(effects, ces)

    work = f"CEAT, N = {draws:,}, table included (peer made {some:,})"
    args = (*at, *lists)
    share = some / draws
    yield compare("NumPy by draw", work, theirs_ceat, ours_ceat, args, share)
    work, share = work.replace(f"{some:,}", str(len(few))), len(few) / draws
    yield compare("NumPy by pair of words", work, by_pairs, ours_ceat, args, share)


def enumerate_partitions(s: np.ndarray, nx: int) -> float:
    """Exact p of one test, the way it is usually written."""
    s = s.astype(np.float64)
    observed = s[:nx].sum() - 8 * np.finfo(np.float32).eps * np.abs(s).sum()
    total = count = 0
    for chosen in itertools.combinations(range(len(s)), nx):
        count += s[list(chosen)].sum() >= observed
        total += 1
    return count / total


SCENES = {
    "ranking": ranking_rows,
    "association": association_rows,
    "bootstrap": lambda: scenes.bootstrap_rows(compare),
    "sensitivity": lambda: scenes.sensitivity_rows(compare),
    "likelihood": lambda: model_scenes.likelihood_rows(interleave),
    "sampler": lambda: model_scenes.sampler_rows(interleave),
}


def main(argv: list[str]) -> None:
    """Prints the table of the scenes asked for."""
    del argv
    if _ONLY.value and _ONLY.value not in SCENES:
        raise app.UsageError(f"--only={_ONLY.value} is none of {', '.join(SCENES)}")
    print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name in [_ONLY.value] if _ONLY.value else SCENES:
        for row in SCENES[name]():
            ratio = row.peer_seconds / row.seconds
            figures = (row.peer_seconds, row.seconds, ratio, row.compile_seconds)
            cells = [f"{x:.3g}" for x in (*figures, row.error)]
            print(f"| {row.peer} | {row.work} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    app.run(main)
