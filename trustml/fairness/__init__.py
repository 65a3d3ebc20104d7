"""Fairness: measure whom a model serves worse, exactly, and say how sure that is.

Counts first. One tensor `cells[group, label, guess]` holds everything that group
metrics need; it is filled by a scatter-add, merged by `+` over batches, devices and
clients, and bootstrapped without a row being touched.

Names to know:

- `counts.count`, `rates.rate`, `gaps.demographic_parity_difference` and its kin: group
  metrics; undefined is NaN with the reason, never 0.
- `intervals.ci`, `floors.floor`: an interval for anything computed from counts, and how
  large a gap is where groups do not matter. Largest gaps and ratios: `contrasts`.
- `ranking.auc_bias`: Subgroup, BPSN and BNSP AUC of many identities in one pass;
  `delong`: variance of areas, and of the difference of two models, in closed form.
- `sensitivity.prediction_sensitivity`: how far protected directions move a prediction,
  by VJPs and JVPs; `counterfactual.gap` is its baseline.
- `association.weat`, `association.seat`, `ceat.ceat`: association tests.
- `likelihood`: scores of sentences under causal and masked models; on them
  `stereoset`, `crows_pairs`, `bbq`, `templates`.
- `polarity`: whom generated texts are about; `norms`: ratings of their words; `spread`:
  how far means of groups lie apart, in clusters; `agreement`: do measures agree?
- `excessive_risk`, `clipping_bias`: who pays for privacy, and why; `clients`: how
  evenly a federation serves.
- `groups.accuracy_by`: accuracy per group for a report, on plain arrays.

Example::

    from trustml.fairness import contrasts, counts, floors, gaps, intervals, rates

    cells = counts.count(group, label, guess, groups=4).cells
    tpr = intervals.ci(jax.random.key(0), cells, rates.tpr)
    gap = contrasts.largest_difference(*contrasts.parts('tpr', cells))
    chance = floors.floor(0, cells, lambda cells: gaps.difference(cells, 'tpr'))
    gap.value, gap.lo, gap.hi, chance.high, tpr.lo           # tpr.lo: float32[4]

Reading a gap: `max - min` over groups is never negative, so it is above zero even when
all groups are served alike. It means something only beside its noise floor, and its
interval is one of signed pairs (`contrasts`): a bootstrap of it never holds 0. And a
signed difference has a convention: `gaps` says whose.

No other pillar is imported; an experiment brings the arrays.
"""
