"""Private training: exact DP-SGD for any loss, and the object that owns the guarantee.

The five names to know:

`clipping.clipped_grad`  the sum of clipped per-example gradients, with its sensitivity
`sampling.poisson`       which examples a step sees, with its sampling event
`plan.make`              joins both with the noise; calibrates it, reports epsilon
`noise.gaussian`         float32 noise, once per logical batch
`accounting.epsilon`     dp-accounting behind one convention

Example::

    clipper = clipping.clipped_grad(task.loss, l2_clip_norm=1.0)
    sampler = sampling.poisson(13084, 1024, physical_batch_size=256)
    made = plan.make(clipper, sampler, steps=200, delta=1e-5, epsilon=8.0,
                     relation=accounting.relation('add_or_remove_one'))
    sums, info = clipper(params, batch, mask, key)
    noisy, state = made.mechanism.update(sums, state)
    mean = jax.tree.map(lambda s: s / made.expected_batch_size, noisy)

A user with many examples as the unit of privacy: `users`. Noise that is drawn exactly,
on a grid: `discrete_gaussian`. Around these: `adam` (Adam that knows the noise),
`search` (hyper-parameters chosen privately).
How the clipped sum costs little more than an ordinary gradient: `factored`.
"""
