"""Per-example gradients as factors, for any loss: algebra on the gradient program.

`trace.factored(loss)` turns a loss of one example into a function that gives losses,
squared gradient norms and, instead of per-example gradients, the factors they are made
of; `norms.clipped_sum` contracts these with the clip factors. No hooks, no list of
layers, no change to the model.

The five names to know: `trace.factored`, `interpreter.interpret`, `tail.carry`,
`terms.Term`, `norms.combine`. The way of one gradient: `trace` makes the jaxpr of
`grad(loss)` for one example, `interpreter` runs it and leaves products as `terms`,
`tail` says which operations a product passes through, `scans` does so for loops,
`norms` finds the norm and the clipped sum.
"""
