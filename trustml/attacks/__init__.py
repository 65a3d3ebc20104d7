"""Attacks: how much of its training data does a model give away?

Every attack is a score per example, larger means "was in the training data"; every
result goes through the same honest metrics, so a stronger attack is a better score and
nothing else changes.

| attack | module | the attacker has |
|---|---|---|
| loss, attack-P, attack-R, calibrated | `baselines` | the target; OUT references |
| LiRA, Student-t, online and offline | `likelihood` | OUT, or IN and OUT references |
| RMIA, online and offline | `ratio` | OUT, or IN and OUT references |
| quantile regression | `quantile` | non-members |
| Shokri | `shokri` | shadow models |
| Min-K%, Min-K%++, zlib and others | `language` | log-probabilities of tokens |
| a classifier that sees no model | `blind` | inputs alone |

Start with Student-t: it has nothing to tune and holds with 4 references as with 60.

Five names to know:

- `references.rotate(member, pair, budget=...)`: every model is a target once, the
  others are its references, its partner never.
- `closed_form.scores(margin, log_prob, rotation, valid)`: all attacks of the first
  three lines, of every target and example; `closed_form.THREATS` says what each needs.
- `targets.measure(value, member, valid)`: mean AUC and TPR at small false-alarm rates
  over targets, with errors; `subgroups.at_fpr` the same counts per group.
- `membership.from_scores(member_scores, nonmember_scores, attack=...)`: one target in
  full, with the threat model, for the report; `membership.loss_threshold` where there
  are no references at all.
- `metrics.tpr_at_fpr`, `metrics.tpr_bound`: members found at a fixed share of false
  alarms, and the most any attack can reach under DP.

Example::

    from trustml.attacks import closed_form, references, targets

    rotation = references.rotate(signals.member, signals.pair, budget=16)
    found = jax.jit(closed_form.scores)(
        signals.margin, signals.log_prob, rotation, signals.valid
    )
    result = targets.measure(
        found['Student-t'].value, signals.member, found['Student-t'].valid
    )
    print(result.auc.value, result.auc.stderr)       # 0.5 is chance

Reading a result: an attack at chance says that THIS attack found nothing. It is no
proof that nothing leaks; only the formal guarantee bounds every attack at once. Where
membership was observed and not drawn at random, look at `blind` first.
"""
