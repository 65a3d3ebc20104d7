"""Experiments: one linear, readable script per kind of run.

`train.run` trains one model, with or without privacy, and reports on it.
`trust_report.run` trains the same model at several privacy budgets, attacks each, and
writes the report that says what is promised, what leaks, what it costs and who is
served worse. `membership.run` attacks shadow models; `audit.run` holds the private
trainer to its promise by canaries. All are called by `launch/run.py` with a
`specs.RunConfig` and a directory.

The pieces: `build` makes data, task, optimizer and plan from the config; `units` says
whether a step draws examples or users; `loop` is the training loop; `evaluate`
measures; `describe` turns measurements into a report; `finished` answers for a run that
has ended; `strong` and `canary_run` attack and audit the runs of a trust report.
"""
