"""What a report holds: the dictionary that `report.write` takes.

Everything is optional except `runs` and each run's `name`; a missing part is shown as
not measured. `{...}` with `value, lo, hi` is an estimate with its interval and `n` its
count; those of `test` and `fairness` are at the level said there, others at 95%.

    title, command, created        str
    versions                       {'python': '3.11.9', 'jax': '0.10.2', ...}
    machine                        str, or {'cpu': ..., 'cores': 2, ...}
    data      name, source, licence    str
              digest                   of the data and how they were read
              counts                   {'train': 13084, 'test': 700}
              classes                  list of names, or their number
    task      model                    str
              params                   number of parameters, or of trainable ones
    runs      list of:
      name                         'non-private', 'eps=8', 'eps=1'; unique
      private                      bool
      epsilon_target               asked for; None if the noise was given instead
      epsilon_spent                what the accountant says at the last step
      epsilon_rdp                  second opinion, RDP accountant
      epsilon_nominal              what the noise is often quoted with; no guarantee
      delta, relation              1e-5, 'add_or_remove_one'
      privacy_unit                 'one training utterance'
      num_units                    how many of them there are
      sampler, accountant          'poisson', 'pld'
      noise_multiplier, l2_clip_norm
      noise_secret                 bool: from the operating system, not a seed
      steps, expected_batch_size
      curves    step, loss, accuracy, epsilon    lists of one length; None = not taken
      test      accuracy               {value, lo, hi, n[, method]}
                change                 {value, lo, hi}: paired, against the run without
                                       privacy (intervals.paired_change)
                per_class, per_length  fairness.groups.rows(...): list of
                                       {name, n, value, lo, hi[, small, change]}
                class_gap, length_gap  fairness.groups.Gap as a dict
                majority_baseline      accuracy of always naming the commonest class
                level                  of its intervals; 0.95 where absent
              slot_f1                {value, lo, hi, n}: span F1, where slots are tagged
      membership                   attacks.membership.as_dict(result, epsilon=, delta=)
      membership_strong            the same of an attack by shadow models, with
                                   shadow_models, their number
      audit                        epsilon, confidence, method, n_in, n_out, sample_rate
                                   and violated: the largest of the lower bounds that
                                   canaries gave; bounds: audit.result.as_dict of each
      cost      seconds_per_step, examples_per_second, compile_seconds, wall_seconds,
                peak_temp_bytes, flops, epoch_seconds
                ratios                 the same names, over the run without privacy;
                                       computed here where absent
      nonfinite_examples           int: gradients that were nan or inf, clipped to zero
      fallback_leaves              int: parameters whose gradients were materialised
    fairness  who pays for privacy, where the data know groups of people:
      level                        of its intervals; 0.95 where absent
      positive, seeds              label of the gaps; pairs of models behind the risks
      left_out                     list of str: what was not measured
      attributes                   list of {name, groups: names, runs: run name -> of}
        groups                     {name, n, value, lo, hi, small, loss: {...}} each
        accuracy_gap               fairness.groups.Gap as a dict
        gaps                       name -> {value, lo, hi, floor, p_value, ...}
        risk, fall                 fairness.excessive_risk.ExcessiveRisk as a dict, of
                                   losses and of errors; not of the run without privacy
        attack                     kind, fpr, and of each group n_members,
                                   n_nonmembers, small, auc, tpr, fpr, own_tpr
        sensitivity                groups: {name, n, small, reliance, displacement};
                                   status: accuracy, majority of the model that tells
        nonprivate                 clipping: fairness.clipping_bias.ClippingBias as a
                                   dict; not covered by any epsilon
    limits    list of str: what was not tested

Example::

    from trustml.report import schema

    report = schema.check({'runs': [{'name': 'eps=8', 'private': True}]})
    schema.labels(report['runs'])       # {'eps=8': 'ε = 8'} if epsilon_target is 8
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trustml import _validate

_PARTS = ("curves", "test", "membership", "membership_strong", "audit", "cost")

COST = {
    "seconds_per_step": "time per step",
    "peak_temp_bytes": "temporary memory",
    "flops": "arithmetic",
}


def clean(value: Any) -> Any:
    """Plain Python for JSON: NaN and infinity become None, arrays become lists.

    Args:
      value: any nesting of mappings, sequences, NamedTuples, NumPy or JAX arrays,
        numbers, strings, paths, None.

    Returns:
      dict, list, str, int, float, bool or None, all the way down.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Mapping):
        return {_key(k): clean(v) for k, v in value.items()}
    if hasattr(value, "_asdict"):
        return clean(value._asdict())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [clean(v) for v in value]
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "__array__"):
        return clean(np.asarray(value).tolist())
    return str(value)


def check(report: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the little that must be there and returns a clean copy.

    Args:
      report: the dictionary of the module's docstring.

    Returns:
      A copy through `clean`.

    Raises:
      ValueError: if there is no run, a run has no name, two share one, or a section has
        the wrong kind.
    """
    if not isinstance(report, Mapping):
        _validate.fail("report", type(report).__name__, "must be a dictionary")
    out = clean(report)
    runs = out.get("runs")
    if not isinstance(runs, list) or not runs:
        _validate.fail("report['runs']", runs, "must be a list of at least one run")
    seen = set()
    for i, run in enumerate(runs):
        field = f"report['runs'][{i}]"
        if not isinstance(run, dict):
            _validate.fail(field, run, "must be a dictionary")
        name = run.get("name")
        if not isinstance(name, str) or not name:
            _validate.fail(f"{field}['name']", name, "must be a name", "use 'eps=8'")
        if name in seen:
            _validate.fail(
                f"{field}['name']", name, "is used twice", "names are unique"
            )
        seen.add(name)
        for part in _PARTS:
            if not isinstance(run.get(part, {}), (dict, type(None))):
                _validate.fail(f"{field}[{part!r}]", run[part], "must be a dictionary")
    return out


def get(tree: Any, *path: str, default: Any = None) -> Any:
    """`tree[path[0]][path[1]]...`, or the default where a part is missing or None."""
    for key in path:
        if not isinstance(tree, Mapping) or tree.get(key) is None:
            return default
        tree = tree[key]
    return tree


def number(tree: Any, *path: str) -> float | None:
    """The finite number at a path, or None."""
    value = get(tree, *path)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def is_private(run: Mapping[str, Any]) -> bool:
    """True if the run was trained with privacy."""
    return bool(run.get("private"))


def protects_users(run: Mapping[str, Any]) -> bool:
    """True if the promise is for users, whose examples it does not hold for singly."""
    return "user" in str(run.get("privacy_unit") or "")


def epsilon(run: Mapping[str, Any]) -> float | None:
    """Epsilon spent, or the target where the spent figure is missing."""
    spent = number(run, "epsilon_spent")
    return number(run, "epsilon_target") if spent is None else spent


def level(runs: Sequence[Mapping[str, Any]]) -> str:
    """The level of the intervals of accuracies, such as '95%'."""
    said = (number(run, "test", "level") for run in runs)
    return f"{100 * next((x for x in said if x is not None), 0.95):g}%"


def labels(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Run name -> what the reader sees, 'no privacy' or 'ε = 8'; names if two clash."""
    out = {}
    for run in runs:
        value = number(run, "epsilon_target")
        value = epsilon(run) if value is None else value
        if not is_private(run):
            out[run["name"]] = "no privacy"
        elif value is not None:
            out[run["name"]] = f"ε = {value:.3g}"
        else:
            out[run["name"]] = run["name"]
    if len(set(out.values())) < len(out):
        return {name: name for name in out}
    return out


def reference(runs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first run without privacy, to compare with; None if there is none."""
    return next((run for run in runs if not is_private(run)), None)


def strongly_attacked(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The runs that shadow models attacked, with that attack as their `membership`."""
    return [
        {**run, "membership": run["membership_strong"]}
        for run in runs
        if get(run, "membership_strong")
    ]


def strictest(runs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The private run with the smallest epsilon; the last run if none is private."""
    private = [
        (value, run)
        for run in runs
        if is_private(run) and (value := epsilon(run)) is not None
    ]
    return min(private, key=lambda pair: pair[0])[1] if private else runs[-1]


def ratio(
    run: Mapping[str, Any], base: Mapping[str, Any] | None, name: str
) -> float | None:
    """Cost of a run over that of the reference: as given, else computed, else None."""
    given = number(run, "cost", "ratios", name)
    if given is not None or base is None:
        return given
    mine, theirs = number(run, "cost", name), number(base, "cost", name)
    return mine / theirs if mine is not None and theirs else None


def _key(key: Any) -> str:
    return f"{key:g}" if isinstance(key, float) else str(key)
