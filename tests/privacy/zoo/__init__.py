"""One-example losses of every kind that exact clipping must handle.

Each `Case` is a loss in the sense of `trustml.task`: `loss(params, example, key)` of
one example without a batch axis. The families: what the linear tail may cross, which
products there are, how parameters are shared, which regions nest; written in plain JAX,
Flax linen, Flax nnx and Equinox. Shapes are the smallest that still tell axes apart (no
two axes of one operand have the same size where avoidable).

    case.params(seed) -> numpy params
    case.make_batch(rng, B) -> batch, leaves [B, ...]

`expected_materialised` is the number of leaves that may fall back to one gradient per
example; None where the answer is left to the method.
"""

import jax
import jax.numpy as jnp

from tests.privacy.zoo.cases import (
    BF16,
    FP32,
    Case,
    floats,
    ints,
    tokens,
    weights,
)
from tests.privacy.zoo.frameworks import (
    EqxEmbedder,
    EqxNet,
    LinenCnn,
    LinenEncoder,
    LinenLstm,
    LinenScan,
    LinenTransposed,
    NnxCnn,
    NnxEncoder,
    equinox,
    linen,
    nnx_case,
)
from tests.privacy.zoo.products import (
    bilinear,
    conv_net,
    conv_reused,
    conv_transpose,
    deep_mlp,
    dense,
    einsum_heads,
    einsum_kept,
    einsum_orders,
    embedding,
    embedding_indexed,
    embedding_two_lookups,
    one_hot_matmul,
    patches_dense,
    positions_sliced,
    quadratic_form,
    sequence_mlp,
    tied_language_model,
    tied_scaled,
    weight_product,
)
from tests.privacy.zoo.programs import (
    augmentation_views,
    autoencoder,
    bias_only,
    cast,
    checkpointed,
    concatenated_parameters,
    cond_in_loss,
    cumulative,
    custom_jvp,
    custom_vjp,
    dropout,
    dynamic_window,
    expert_gather,
    fourier,
    fused_qkv,
    gather_positions,
    jitted_parts,
    lora_merged,
    lora_two_products,
    masked_weights,
    negated_parameter,
    padded_parameter,
    reshaped_parameter,
    reused,
    scalar_parameters,
    scaled_by_length,
    scaled_constant,
    segment_pooling,
    sliced_parameter,
    sorted_pool,
    split_parameter,
    take_along_axis,
    top1_routing,
    unused_parameter,
    used_both_ways,
    vmap_over_heads,
    vmap_over_time,
    weight_decay_inside,
    weight_normalised,
    zero_gradient,
)
from tests.privacy.zoo.sequences import (
    BLOCK,
    LSTM,
    attention_block,
    bilstm_crf,
    bilstm_crf_init,
    fori_forward,
    gru,
    lstm_bf16,
    lstm_loss,
    nested_scans,
    scan_layers,
    scan_layers_init,
    scan_layers_shared,
    scan_remat_recurrent,
    transformer,
    transformer_init,
    unscanned_stack,
    while_forward,
)

# ---- the table ----------------------------------------------------------------------


def _case(name, loss, make_batch, shapes, expected=None, tol=FP32):
    init = shapes if callable(shapes) else weights(**shapes)
    return Case(name, init, loss, make_batch, tol, expected)


def _conv_case(name, kernels, channels, options, expected, shape=(6, 5, 2)):
    shapes = {f"k{i + 1}": kernel for i, kernel in enumerate(kernels)}
    shapes |= {"b1": (channels,), "out": (kernels[-1][-1], 3)}
    return _case(name, conv_net(*options), floats(*shape), shapes, expected)


_SEQ = floats(5, 4)
_DENSE = {"w": (4, 3), "b": (3,)}
_OUT = {"w": (4, 6), "out": (6, 3)}
_TWO = {"w1": (4, 6), "w2": (6, 3)}
_EMBED = {"table": (9, 4), "out": (4, 3)}
_TABLE = {"table": (9, 4)}
_MLP = {f"w{i}": (4, 4) for i in range(4)} | {f"b{i}": (4,) for i in range(4)}
_BLOCK = BLOCK | {"out": (6, 3)}
_NOTHING = jax.checkpoint_policies.nothing_saveable
_DOTS = jax.checkpoint_policies.dots_saveable


def _remat(f):
    return jax.checkpoint(f, prevent_cse=False)


CASES = (
    # dense and einsum
    _case("dense", dense, floats(4), _DENSE, 0),
    _case("deep_mlp", deep_mlp, floats(4), _MLP | {"out": (4, 3)}, 0),
    _case("sequence_mlp", sequence_mlp, _SEQ, _TWO | {"b1": (6,)}, 0),
    _case(
        "sequence_mlp_long",
        sequence_mlp,
        floats(2, 30),
        {"w1": (30, 40), "b1": (40,), "w2": (40, 3)},
        0,
    ),
    _case("einsum_heads", einsum_heads, _SEQ, {"w": (4, 2, 3), "o": (2, 3, 6)}, 0),
    _case(
        "einsum_orders",
        einsum_orders,
        _SEQ,
        {"a": (6, 4), "b": (6, 7), "c": (2, 7, 3), "d": (3, 3, 2)},
        0,
    ),
    _case(
        "einsum_kept",
        einsum_kept,
        floats(4, 5),
        {"position": (4, 5, 6), "group": (2, 3, 4), "out": (8, 3)},
        0,
    ),
    _case("bilinear", bilinear, floats(4), {"w": (4, 5, 3), "v": (4, 5)}),
    _case("quadratic_form", quadratic_form, floats(4), {"w": (4, 4)}, 0),
    _case("weight_product", weight_product, _SEQ, {"u": (4, 5), "v": (5, 3)}),
    # convolutions
    _conv_case("conv2d_same", [(3, 3, 2, 4)], 4, [{}], 0),
    _conv_case(
        "conv2d_strides_valid",
        [(3, 2, 2, 4), (2, 2, 4, 3)],
        4,
        [{"strides": (2, 1), "padding": "VALID"}, {"strides": (1, 2)}],
        0,
    ),
    _conv_case("conv2d_dilated", [(2, 3, 2, 4)], 4, [{"rhs_dilation": (2, 1)}], 0),
    _conv_case("conv1d", [(3, 2, 4), (2, 4, 3)], 4, [{}, {"strides": (2,)}], 0, (7, 2)),
    _conv_case(
        "conv2d_padded_unevenly",
        [(3, 3, 2, 4)],
        4,
        [{"padding": ((2, 0), (0, 1)), "strides": (2, 2)}],
        0,
    ),
    _conv_case(
        "conv2d_depthwise", [(3, 3, 1, 6)], 6, [{"feature_group_count": 2}], None
    ),
    _conv_case(
        "conv1d_grouped",
        [(3, 2, 6)],
        6,
        [{"feature_group_count": 2}],
        None,
        (7, 4),
    ),
    _case(
        "conv_transpose",
        conv_transpose,
        floats(4, 3, 2),
        {"k": (3, 3, 2, 4), "out": (4, 3)},
    ),
    _case("conv_reused", conv_reused, floats(5, 4, 3), {"k": (2, 2, 3, 3)}),
    _case("patches_dense", patches_dense, floats(4, 6, 2), {"w": (8, 3)}, 0),
    # embeddings
    _case("embedding", embedding(), tokens(9, 5), _EMBED, 0),
    _case("embedding_repeated_ids", embedding(), tokens(9, 8, repeat=True), _EMBED, 0),
    _case("embedding_fill", embedding("fill"), tokens(14, 6, low=-3), _EMBED, 0),
    _case("embedding_clip", embedding("clip"), tokens(14, 6, low=-3), _EMBED, 0),
    _case("embedding_indexed", embedding_indexed, tokens(9, 5), _EMBED, 0),
    _case("embedding_two_lookups", embedding_two_lookups, tokens(5, 8), _EMBED),
    _case(
        "positions_sliced",
        positions_sliced,
        tokens(9, 5),
        _EMBED | {"positions": (7, 4)},
        0,
    ),
    _case("one_hot_matmul", one_hot_matmul, tokens(9, 5), _EMBED, 0),
    _case(
        "tied_language_model",
        tied_language_model,
        tokens(9, 6),
        _TABLE | {"w": (4, 4)},
        0,
    ),
    _case(
        "tied_scaled", tied_scaled, tokens(9, 6, repeat=True), _TABLE | {"bias": (9,)}
    ),
    # attention and transformers
    _case("attention_block", attention_block, floats(5, 6), _BLOCK, 0),
    _case("transformer_tied", transformer(), tokens(11, 7), transformer_init, 0),
    _case("scan_layers", scan_layers(), floats(5, 6), scan_layers_init, 0),
    _case("scan_layers_remat", scan_layers(_remat), floats(5, 6), scan_layers_init, 0),
    _case(
        "scan_layers_shared",
        scan_layers_shared,
        floats(5, 3),
        {"stack": (4, 3, 3), "shared": (3, 3)},
    ),
    _case(
        "unscanned_stack", unscanned_stack, _SEQ, {"stack": (3, 4, 4), "out": (4, 3)}
    ),
    # recurrence
    _case("lstm", lstm_loss, _SEQ, LSTM, 0),
    _case(
        "gru",
        gru,
        _SEQ,
        {"gates": (7, 6), "b": (6,), "wn": (4, 3), "un": (3, 3)},
    ),
    _case("bilstm_crf", bilstm_crf, floats(5, 4, tag=ints(5, 5)), bilstm_crf_init),
    _case(
        "nested_scans",
        nested_scans,
        floats(3, 2, 5),
        {"w": (5, 4), "u": (4, 4), "v": (4, 3), "r": (3, 3)},
    ),
    _case(
        "scan_remat_recurrent", scan_remat_recurrent, _SEQ, {"w": (4, 3), "u": (3, 3)}
    ),
    _case("fori_forward", fori_forward, floats(4), {"w": (4, 4), "out": (4, 3)}),
    _case("while_forward", while_forward, floats(4), {"w": (4, 3)}, 0),
    # regions and control flow
    _case(
        "checkpoint",
        checkpointed(),
        _SEQ,
        {"w1": (4, 6), "b1": (6,), "w2": (6, 5), "out": (5, 3)},
        0,
    ),
    _case(
        "checkpoint_nothing",
        checkpointed(_NOTHING),
        _SEQ,
        {"w1": (4, 6), "b1": (6,), "w2": (6, 5), "out": (5, 3)},
        0,
    ),
    _case(
        "checkpoint_dots",
        checkpointed(_DOTS),
        _SEQ,
        {"w1": (4, 6), "b1": (6,), "w2": (6, 5), "out": (5, 3)},
        0,
    ),
    _case("jitted_parts", jitted_parts, _SEQ, _TWO | {"out": (3, 3)}, 0),
    _case("custom_vjp", custom_vjp, _SEQ, _TWO, 0),
    _case("custom_jvp", custom_jvp, _SEQ, _TWO, 0),
    _case(
        "cond_in_loss",
        cond_in_loss,
        floats(4),
        {"w1": (4, 5), "w2": (4, 5), "out": (5, 3)},
    ),
    # shared, transformed and partial parameters
    *(
        _case(f"reused_{n}", reused(n), floats(5, 3), {"w": (3, 3), "out": (3, 3)}, 0)
        for n in (2, 3, 4)
    ),
    _case("autoencoder", autoencoder, _SEQ, {"w": (4, 3)}, 0),
    _case("used_both_ways", used_both_ways, _SEQ, _OUT | {"out": (6, 3)}),
    _case("fused_qkv", fused_qkv, _SEQ, {"qkv": (4, 9), "out": (3, 3)}, 0),
    _case("split_parameter", split_parameter, _SEQ, {"qkv": (4, 9), "out": (3, 3)}),
    _case("sliced_parameter", sliced_parameter, _SEQ, {"w": (4, 7), "out": (5, 3)}),
    _case(
        "concatenated_parameters",
        concatenated_parameters,
        _SEQ,
        {"a": (4, 2), "b": (4, 3), "c": (2, 3), "d": (3, 3)},
    ),
    _case("padded_parameter", padded_parameter, _SEQ, {"w": (4, 3), "out": (6, 3)}),
    _case(
        "reshaped_parameter", reshaped_parameter, _SEQ, {"flat": (24,), "out": (6, 3)}
    ),
    _case("negated_parameter", negated_parameter, _SEQ, _OUT),
    _case(
        "weight_normalised",
        weight_normalised,
        _SEQ,
        {"v": (4, 6), "g": (6,), "out": (6, 3)},
    ),
    _case("masked_weights", masked_weights, _SEQ, _OUT),
    _case(
        "lora_two_products",
        lora_two_products,
        _SEQ,
        {"a": (4, 2), "b": (2, 6), "out": (6, 3)},
        0,
    ),
    _case("lora_merged", lora_merged, _SEQ, {"a": (4, 2), "b": (2, 6), "out": (6, 3)}),
    _case("bias_only", bias_only, _SEQ, {"b1": (6,), "b2": (3,)}, 0),
    _case(
        "scalar_parameters",
        scalar_parameters,
        _SEQ,
        {"scale": (), "shift": (), "w": (4, 3), "temperature": ()},
    ),
    _case("unused_parameter", unused_parameter, floats(4), _DENSE | {"spare": (5, 2)}),
    _case("zero_gradient", zero_gradient, floats(4), {"w": (4, 3)}, 0),
    # the shape of the loss
    _case("weight_decay_inside", weight_decay_inside, floats(4), _DENSE),
    _case("scaled_by_length", scaled_by_length, floats(5, 4, n=ints(6)), _OUT, 0),
    _case("scaled_constant", scaled_constant, floats(4), _DENSE, 0),
    _case(
        "vmap_over_heads", vmap_over_heads, _SEQ, {"heads": (2, 4, 3), "out": (3, 3)}, 0
    ),
    _case("vmap_over_time", vmap_over_time, _SEQ, _TWO, 0),
    _case("augmentation_views", augmentation_views, floats(4), _DENSE),
    _case("dropout", dropout, _SEQ, _TWO | {"out": (6, 3)}, 0),
    _case(
        "segment_pooling",
        segment_pooling,
        floats(5, 4, segment=ints(3, 5)),
        {"w": (4, 2), "out": (6, 3)},
        0,
    ),
    _case("gather_positions", gather_positions, floats(5, 4, at=ints(5, 6)), _OUT, 0),
    _case("take_along_axis", take_along_axis, floats(5, 4, at=ints(3, 5)), _DENSE, 0),
    _case("dynamic_window", dynamic_window, _SEQ, {"w": (7, 3)}),
    _case("cumulative", cumulative, _SEQ, _OUT, 0),
    _case("fourier", fourier, floats(8, 4), _OUT, 0),
    _case("sorted_pool", sorted_pool, _SEQ, _OUT, 0),
    _case("expert_gather", expert_gather, _SEQ, {"experts": (3, 4, 5), "out": (5, 3)}),
    _case(
        "top1_routing",
        top1_routing,
        _SEQ,
        {"router": (4, 3), "experts": (3, 4, 5), "out": (5, 3)},
        0,
    ),
    # bfloat16 activations, float32 parameters
    _case("bf16_mlp", cast(sequence_mlp), _SEQ, _TWO | {"b1": (6,)}, 0, BF16),
    _case(
        "bf16_conv",
        cast(conv_net({}, {})),
        floats(6, 5, 2),
        {"k1": (3, 3, 2, 4), "b1": (4,), "k2": (3, 3, 4, 3), "out": (3, 3)},
        0,
        BF16,
    ),
    _case(
        "bf16_transformer",
        transformer(jnp.bfloat16),
        tokens(11, 7),
        transformer_init,
        0,
        BF16,
    ),
    _case(
        "bf16_scan_layers",
        scan_layers(_remat, jnp.bfloat16),
        floats(5, 6),
        scan_layers_init,
        0,
        BF16,
    ),
    _case("bf16_lstm", lstm_bf16, _SEQ, LSTM, None, BF16),
    # Flax linen, Flax nnx, Equinox
    linen("linen_cnn", LinenCnn(), "x", floats(8, 8, 2), 0),
    linen("linen_encoder", LinenEncoder(), "t", tokens(11, 6), 0),
    linen("linen_lstm", LinenLstm(), "x", _SEQ),
    linen("linen_scan_remat", LinenScan(), "x", _SEQ, 0),
    linen("linen_transposed_depthwise", LinenTransposed(), "x", floats(6, 2)),
    nnx_case("nnx_encoder", NnxEncoder, "t", tokens(11, 6), 0),
    nnx_case("nnx_cnn", NnxCnn, "x", floats(8, 8, 2), 0),
    equinox("equinox_series", EqxNet, "x", _SEQ),
    equinox("equinox_embedder", EqxEmbedder, "t", tokens(11, 6), 0),
)
