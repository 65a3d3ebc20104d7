"""Attacks: how much of its training data does a model give away?

Every attack is a score per example, larger means "was in the training data"; every
result goes through the same honest metric, so a stronger attack is a better score and
nothing else changes.

Five names to know:

- `membership.loss_threshold(member_losses, nonmember_losses)`: the plainest membership
  attack (Yeom et al. 2018); an optional label-wise calibration.
- `membership.from_scores(member_scores, nonmember_scores, attack=...)`: any other
  attack.
- `membership.as_dict(result, epsilon=..., delta=...)`: the result for the report, with
  the curve that (epsilon, delta)-DP allows.
- `metrics.tpr_at_fpr`: members found at a fixed share of false alarms, with the
  achieved share and exact intervals; refuses when there are too few non-members to say.
- `metrics.tpr_bound(fpr, epsilon, delta)`: the most any attack can reach under DP.

Example::

    from trustml.attacks import membership

    result = membership.loss_threshold(train_losses, test_losses)
    print(f'AUC {result.auc:.3f} {result.auc_interval}; chance is 0.5')
    for fpr, point in result.tpr_at_fpr.items():
        print(f'finds {point.tpr:.1%} of members, accuses {point.achieved_fpr:.2%}')

Reading a result: an attack at chance says that THIS attack found nothing. It is no
proof that nothing leaks; only the formal guarantee bounds every attack at once.
"""
