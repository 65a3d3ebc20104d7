"""Fairness: measure who a model serves worse, with honest intervals.

Names to know:

- `groups.accuracy_by(correct, group)`: accuracy per group with counts, intervals,
  flags for small groups, and the gap best - worst beside its noise floor.

Everything is float64 NumPy and SciPy on the host: counts in, plain numbers out. No
model and no other pillar is imported; an experiment brings the arrays.

Example::

    from trustml.fairness import groups

    result = groups.accuracy_by(predicted == label, label, names=label_names)
    for rate in result.rates:
        print(f'{rate.name:20s} {rate.value:.3f} [{rate.lo:.3f}, {rate.hi:.3f}]')
    print(f'gap {result.gap.value:.3f}, by chance {result.gap.floor_95:.3f}')

Reading a gap: `max - min` over groups is never negative, so it is above zero even when
all groups are served alike. It means something only beside `gap.floor_95`, the 95%
quantile of the same figure when group labels are shuffled.
"""
