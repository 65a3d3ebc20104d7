"""Audits: how much does a private trainer leak at the least?

A plan promises that epsilon is at most so much. An audit attacks the trainer with the
strongest adversary there is, and turns what the attack finds into a *lower* bound on
epsilon that holds at a stated confidence. A bound above the promise proves a defect (a
wrong noise scale, a forgotten clip, a mask that leaks). A bound far below it proves
nothing: a loose audit finds no defects.

The names to know:

- `canaries.wrap(task, count)`: the task with an extra leaf in which every canary has a
  coordinate of its own; its clipped gradient is the longest one there can be.
  `canaries.coins`, `.insert` and `.recording` put canaries into the data by fair coins
  and keep what each step released.
- `canary_records.make(root, kind, count, task, data)`: canaries of any kind (noise,
  wrong labels, texts with a secret) for any task, with their coins on record.
- `scores.total`, `.subsampled`, `.temporal_variance`: one number per canary.
- `lower_bounds.epsilon_delta`, `.gaussian`: epsilon at least so much, from scores that
  are independent; the threshold is searched on the same scores, and paid for.
- `one_run.epsilon_delta`, `.gaussian`: the same from the coins of one run, and nothing
  else. `credible.joint_beta` is for comparison with published figures.
- `result.against(bound, plan)`: the bound held to what the plan claims.

| method | rests on | when |
|---|---|---|
| `lower_bounds.epsilon_delta` | independent scores | runs, or gradient canaries |
| `lower_bounds.gaussian` | also a Gaussian trade-off curve | full batches; power |
| `one_run.epsilon_delta` | fair coins | one run, any canaries |
| `one_run.gaussian` | fair coins, a Gaussian trade-off curve | the same, tighter |
| `credible.joint_beta` | independent scores and a prior | a *credible* interval |

Example (`tests/audit/gate.py` runs it through the training loop)::

    task = canaries.wrap(task, 10_000)
    included = canaries.coins(root, 10_000)
    columns = canaries.insert(columns, included)
    ...                                          # train, with `recording(optimizer)`
    units = released * plan.expected_batch_size / canaries.contribution(clipper, params)
    o = scores.total(units)                      # [T, n] -> [n]; N(T in_k, T z^2)
    bound = lower_bounds.gaussian(
        o[included], o[~included], delta=1e-5, alpha=0.01, independent_scores=True
    )
    assert not result.against(bound, plan).claim.violated

Two runs or one. With `included` and then `~included`, every canary is in one run and
out of the other. With one run of fair coins, `lower_bounds` rests on the canaries being
independent of one another, which gradient canaries are where the noise is (each reads a
coordinate of its own); `one_run` needs no such thing, and is looser.
"""
