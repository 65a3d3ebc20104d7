"""Sums over the examples of several devices; the only module that names devices.

    map_sum(local)(replicated, sharded) = ( Σ_d s_d , [e_1; e_2; ...; e_D] )
    where (s_d, e_d) = local(replicated, sharded[d]) runs on device d

`local` sees one device's row and may do anything one program can: per-example
gradients, scans from a zero carry, loops with a traced trip count, keys. One `psum`
follows it. Two traps of sharded per-example gradients are closed here, so that no other
module can fall into them (both stand in JAX 0.10.2 and 0.12.0; jax-ml/jax 36886 and
32157, openxla/xla 47945):

1. Inside a default `jax.shard_map`, `jax.grad` of replicated parameters is already
   summed over the devices: what is then clipped "per example" is a sum. Cure: every
   replicated leaf is cast to device-varying before `local` runs. The cast alone would
   refuse any loss with a scan from a constant carry (an LSTM), so the device-variance
   types are switched off as well (`check_vma=False`); either cure suffices alone.
2. An automatically partitioned `jit(vmap(grad(convolution)))` gives zero kernel
   gradients for all examples but the first device's. Cure: the compiler never
   partitions a per-example gradient; `shard_map` and `pmap` hand each device its own
   program.

Sums are formed in device order, so D = 1, 2, 4 agree to float32 rounding (tests: 1e-6
relative), not bit for bit; one layout repeats its bits. With D = 1 `local` is called
directly, nothing is added. Noise belongs after the sum, outside, and is then the same
on every layout.

Dimension key: `D` devices, `N` examples, `P = ceil(N/D)` slots of one device.

Example::

    devices = parallel.devices()
    total = parallel.map_sum(lambda p, rows: clipped(p, *rows), devices=devices)
    rows = parallel.deal((batch, mask), len(devices))          # leaves [D, P, ...]
    params = parallel.replicate(params, devices)
    sums, norms = jax.jit(total)(params, parallel.shard(rows, devices))
    norms_per_example = parallel.undeal(norms, len(devices), length=N)
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trustml import _validate

PyTree = Any
Local = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]

AXIS = "devices"
BACKENDS = ("shard_map", "pmap")


def devices(count: int = 0) -> list[jax.Device]:
    """The first `count` devices of this run; all of them where 0.

    Raises:
      ValueError: if `count` is negative or more than there are.
    """
    found = jax.devices()
    cure = "lower it, or start with more devices; 0 takes all of them"
    _validate.integer_at_least("train.num_devices", count, 0, cure)
    if count > len(found):
        bound = f"must be at most {len(found)}, the {found[0].platform} devices present"
        _validate.fail("train.num_devices", count, bound, cure)
    return found[: count or len(found)]


def free_bytes(device: Any = None) -> int:
    """Free memory of a device, the first of this run where None; on a CPU the host's.

    0 where neither the device nor the system tells.
    """
    stats = (device or jax.local_devices()[0]).memory_stats() or {}
    if "bytes_limit" in stats:
        return max(0, stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def replicate(tree: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """The same arrays on every device; typed keys are arrays too."""
    mesh = _mesh(devices)
    return jax.device_put(tree, jax.NamedSharding(mesh, jax.P()))


def shard(tree: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """Leaves [D, ...] with row d placed on device d.

    Raises:
      ValueError: if a leaf's leading axis is not the number of devices.
    """
    mesh = _mesh(devices)
    _check_rows(tree, mesh.size)
    return jax.device_put(tree, jax.NamedSharding(mesh, jax.P(AXIS)))


def deal(tree: PyTree, num_devices: int, *, axis: int = 0) -> PyTree:
    """Deals examples round-robin: example n goes to device n mod D, slot n // D.

    Where D does not divide N, zeros are appended; a mask in the tree is then False
    there, and a masked slot contributes nothing. Numpy in, numpy out.

    Args:
      tree: leaves [..., N, ...] with the examples along `axis`.
      num_devices: D.
      axis: position of the examples; 1 for the buffers [M, P, ...] of a sampler.

    Returns:
      Leaves [D, ..., P, ...], P = ceil(N/D).
    """

    def deal_leaf(leaf):
        xp = np if isinstance(leaf, np.ndarray) else jnp
        length = leaf.shape[axis]
        slots = -(-length // num_devices)
        if spare := slots * num_devices - length:
            widths = [(0, 0)] * leaf.ndim
            widths[axis] = (0, spare)
            leaf = xp.pad(leaf, widths)
        split = (slots, num_devices)
        leaf = leaf.reshape(leaf.shape[:axis] + split + leaf.shape[axis + 1 :])
        return xp.moveaxis(leaf, axis + 1, 0)

    _validate.integer_at_least("num_devices", num_devices, 1)
    return jax.tree.map(deal_leaf, tree)


def undeal(
    tree: PyTree, num_devices: int, *, axis: int = 0, length: int | None = None
) -> PyTree:
    """Puts the per-shard results of `map_sum` back into the order before `deal`.

    Args:
      tree: leaves [D * K, ...], the concatenation over devices of what `local`
        returned, [K, ...]. With `axis` = 0 the slots are K; otherwise they lie along
        `axis`.
      num_devices: D.
      axis: as given to `deal`.
      length: N; drops the padding of `deal`.

    Returns:
      Leaves [..., N, ...] with the examples along `axis`.
    """

    def undeal_leaf(leaf):
        xp = np if isinstance(leaf, np.ndarray) else jnp
        leaf = leaf.reshape((num_devices, -1) + leaf.shape[1:])
        leaf = xp.moveaxis(leaf, 0, axis + 1)
        merged = leaf.shape[:axis] + (-1,) + leaf.shape[axis + 2 :]
        order = [slice(None)] * axis + [slice(length)]
        return leaf.reshape(merged)[tuple(order)]

    return jax.tree.map(undeal_leaf, tree)


def map_sum(
    local: Local,
    *,
    devices: Sequence[jax.Device] | None = None,
    backend: str = "shard_map",
) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]:
    """`local` on every device's row, its first result summed over the devices.

    Args:
      local: (replicated, row) -> (sums, per_shard). It runs on one device, without
        collectives of its own; `row` has the leaves of `sharded` without the axis D.
      devices: D devices; all of the run where None.
      backend: 'shard_map', or 'pmap' (in maintenance mode upstream; kept as a check).

    Returns:
      fn(replicated, sharded) -> (sums, per_shard). `replicated`: any pytree, keys
      included. `sharded`: leaves [D, ...], row d for device d. `sums`: like `local`'s,
      added over devices. `per_shard`: leaves [K, ...] of `local` become [D * K, ...],
      in device order; a scalar becomes [D]. Pure; jit it, donating at will.

    Raises:
      ValueError: when built, for an unknown backend; when called, for a leaf of
        `sharded` whose leading axis is not D.
    """
    _validate.one_of("train.backend", backend, BACKENDS)
    mesh = _mesh(devices)

    def one_device(replicated, sharded):
        _check_rows(sharded, 1)
        sums, per_shard = local(replicated, jax.tree.map(lambda x: x[0], sharded))
        return sums, jax.tree.map(jnp.atleast_1d, per_shard)

    def shard_mapped(replicated, sharded):
        _check_rows(sharded, mesh.size)

        def body(replicated, sharded):
            replicated = jax.tree.map(
                lambda x: jax.lax.pcast(x, AXIS, to="varying"), replicated
            )
            sums, per_shard = one_device(replicated, sharded)
            return jax.lax.psum(sums, AXIS), per_shard

        return jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(jax.P(), jax.P(AXIS)),
            out_specs=(jax.P(), jax.P(AXIS)),
            check_vma=False,
        )(replicated, sharded)

    def pmapped(replicated, sharded):
        _check_rows(sharded, mesh.size)

        def body(replicated, row):
            sums, per_shard = local(replicated, row)
            return jax.lax.psum(sums, AXIS), jax.tree.map(jnp.atleast_1d, per_shard)

        sums, per_shard = jax.pmap(
            body,
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=(None, 0),
            devices=list(mesh.devices.flat),
        )(replicated, sharded)
        flat = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), per_shard)
        return sums, flat

    if mesh.size == 1:
        return one_device
    return {"shard_map": shard_mapped, "pmap": pmapped}[backend]


def _mesh(found: Sequence[jax.Device] | None) -> jax.sharding.Mesh:
    auto = (jax.sharding.AxisType.Auto,)
    return jax.sharding.Mesh(np.array(list(found or devices())), (AXIS,), auto)


def _check_rows(sharded: PyTree, num_devices: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(sharded):
        shape = jnp.shape(leaf)
        if not shape or shape[0] != num_devices:
            name = "sharded" + jax.tree_util.keystr(path)
            raise ValueError(
                f"{name} has shape {shape}, not one row for each of the {num_devices} "
                f"device(s); parallel.deal(tree, {num_devices}) makes such rows."
            )
