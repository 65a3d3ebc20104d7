"""Audits: how much does a private trainer leak at the least?

A plan promises that epsilon is at most so much. An audit attacks the trainer with the
strongest adversary there is, and turns what the attack finds into a *lower* bound on
epsilon that holds at a stated confidence. A bound above the promise proves a defect (a
wrong noise scale, a forgotten clip, a mask that leaks). A bound far below it proves
nothing: a loose audit finds no defects.

The five names to know:

- `canaries.wrap(task, count)`: the task with an extra leaf in which every canary has a
  coordinate of its own; its clipped gradient is the longest one there can be.
- `canaries.coins(root, count)` and `canaries.insert(columns, included)`: which canaries
  are in the data, by fair coins of a stream of their own, and the data with them.
- `canaries.recording(optimizer)`: keeps the noisy mean that a step released.
- `scores.total`, `scores.subsampled`: one number per canary from what was released.
- `lower_bounds.gaussian`, `.epsilon_delta`, `.one_run`: epsilon at least so much.

Example (`tests/audit/gate.py` runs it through the training loop)::

    task = canaries.wrap(task, 10_000)
    included = canaries.coins(root, 10_000)
    columns = canaries.insert(columns, included)
    ...                                          # train, with `recording(optimizer)`
    units = released * plan.expected_batch_size / canaries.contribution(clipper, params)
    o = scores.total(units)                      # [T, n] -> [n]; N(T in_k, T z^2)
    bound = lower_bounds.gaussian(
        o[included], o[~included], threshold=steps / 2, delta=1e-5, alpha=0.01
    )
    assert bound.epsilon <= plan.epsilon()

Two runs or one. With `included` and then `~included`, every canary is in one run and
out of the other. With one run of fair coins, `gaussian` and `epsilon_delta` rest on the
canaries being independent of one another, which gradient canaries are where the noise
is (each reads a coordinate of its own); `one_run` needs no such thing, and is looser.
"""
