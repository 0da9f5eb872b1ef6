"""Sharing candidates out to the devices of a mesh."""

import contextlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


def with_automatic_axes(mesh: Mesh | None) -> Mesh | None:
    """Take the same devices with axes along which the compiler shards as it likes.

    What shares out the candidates is `shard_map`, whatever kind of axes a user has made.
    """
    return mesh and Mesh(mesh.devices, mesh.axis_names)


def inside(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Work on a mesh, whatever mesh of these devices the caller has set.

    Raises:
        ValueError: If the mesh that is set has explicit axes, and others.
    """
    here = jax.sharding.get_abstract_mesh()
    if mesh is None or here.empty:  # inside of `jax.jit`, no mesh may be set
        return contextlib.nullcontext()
    if here.explicit_axes and here.shape != mesh.shape:
        raise ValueError(
            f"The evaluator's mesh has the axes {dict(mesh.shape)}, and the one that "
            f"`jax.set_mesh` has set {dict(here.shape)}, which are explicit: pass that one "
            "as `mesh`, or none."
        )
    return jax.set_mesh(mesh)


def place(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Copy arrays to every device of the mesh, but for those sharded on it already."""
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())

    def put(x: Any) -> Any:
        if not eqx.is_array(x):
            return x
        if isinstance(x.sharding, NamedSharding) and _same(x.sharding.mesh, mesh):
            return jax.device_put(x, NamedSharding(mesh, x.sharding.spec))
        # Other processes' devices take host memory, not an array of this process's.
        return jax.device_put(np.asarray(x), everywhere)

    return jax.tree.map(put, tree)


def handed_over(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Return arrays as the caller can use them, on a mesh with explicit axes if one is set."""
    here = jax.sharding.get_abstract_mesh()
    if mesh is None or not here.explicit_axes or here.shape != mesh.shape:
        return tree
    return place(tree, Mesh(mesh.devices, mesh.axis_names, axis_types=here.axis_types))


def _same(one: Any, other: Mesh) -> bool:
    """Compare meshes by devices and names; the types of the axes may differ."""
    return one.axis_names == other.axis_names and np.array_equal(one.devices, other.devices)


def num_shares(mesh: Mesh | None) -> int:
    """Say how many devices share the candidates out."""
    return 1 if mesh is None else mesh.shape[mesh.axis_names[0]]


def share(block: np.ndarray, mesh: Mesh | None) -> Array:
    """Hand each device along the first axis of the mesh its rows."""
    if mesh is None:
        return jnp.asarray(block)
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    return jax.make_array_from_callback(block.shape, sharding, block.__getitem__)


def in_shares(
    run: Callable[[PyTree, Array], PyTree], mesh: Mesh | None
) -> Callable[[PyTree, Array], PyTree]:
    """Let each device run its rows alone, and give every device all of the results."""
    if mesh is None:
        return run
    rows, everywhere = PartitionSpec(mesh.axis_names[0]), PartitionSpec()
    shared = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(everywhere, rows),
        out_specs=rows,
        axis_names={mesh.axis_names[0]},
        # The data scan's carry starts equal on all devices and then differs.
        check_vma=False,
    )

    def gathered(arrays: PyTree, c: Array) -> PyTree:
        results = shared(arrays, c)
        return jax.lax.with_sharding_constraint(results, NamedSharding(mesh, everywhere))

    return gathered
