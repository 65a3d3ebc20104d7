"""Refuses losses whose examples could see each other.

Under the one-example contract `vmap` isolates examples, with three exceptions:
collectives over a data axis inside the loss, `custom_vmap` rules, and host callbacks
that are handed the whole batch. `check_program` finds them in the program before
anything runs.

A per-example quantity that needs other examples (batch normalisation, in-batch
negatives, load balancing) has no bounded sensitivity per example: use GroupNorm or
LayerNorm, or make a bundle of examples the privacy unit.
"""

from jax.extend import core

COLLECTIVES = frozenset(
    {
        "psum",
        "psum2",
        "psum_invariant",
        "pmax",
        "pmin",
        "pmean",
        "all_gather",
        "all_gather_invariant",
        "all_to_all",
        "ragged_all_to_all",
        "ppermute",
        "pgather",
        "reduce_scatter",
        "psum_scatter",
    }
)
CALLBACKS = frozenset({"pure_callback", "io_callback"})
WHOLE_BATCH = frozenset({"expand_dims", "broadcast_all", "legacy_vectorized"})
CURE = (
    "use GroupNorm or LayerNorm instead of batch statistics, or make one padded bundle "
    "of examples the privacy unit."
)


def check_program(jaxpr) -> None:
    """Raises ValueError if an equation of the program can mix examples.

    Args:
      jaxpr: of the gradient of the loss for one example, regions included.
    """
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in COLLECTIVES:
            axes = eqn.params.get("axes", eqn.params.get("axis_name", "?"))
            raise ValueError(
                f"loss: its gradient contains the collective `{name}` over {axes}, "
                "which mixes the examples of a batch and has no per-example "
                f"sensitivity; {CURE} (Inside shard_map, the same message means that "
                "the parameters were not made device-varying: go through "
                "`parallel.map_sum`.)"
            )
        if name == "custom_vmap_call":
            raise ValueError(
                "loss: it contains a `custom_vmap` rule, which sees the whole batch, "
                "so isolation of examples cannot be checked; call the function without "
                "the custom batching rule."
            )
        if name in CALLBACKS and eqn.params.get("vmap_method") in WHOLE_BATCH:
            raise ValueError(
                f"loss: it contains `{name}` with vmap_method="
                f"{eqn.params['vmap_method']!r}, which hands the whole batch to the "
                "host; use vmap_method='sequential'."
            )
        for inner in core.jaxprs_in_params(eqn.params):
            check_program(getattr(inner, "jaxpr", inner))
