"""Compiled functions that work on any mesh, and however strict JAX is told to be."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function) -> Function:
    """Compile a function of our own; see `automatic`, `lenient` and `unchecked`."""
    compiled: Any = eqx.filter_jit(lenient(automatic(function)))
    return unchecked(compiled)


def lenient(function: Function) -> Function:
    """Let arrays of any ranks and dtypes be combined inside of a function, as NumPy does.

    With `jax_numpy_rank_promotion="raise"` and `jax_numpy_dtype_promotion="strict"` users
    find such places in what they wrote themselves, and so this is for functions that call
    nothing of theirs, where possible. JAX looks only while it traces: once compiled, this
    costs nothing.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    wrapped: Any = run
    return wrapped


def unchecked(function: Function) -> Function:
    """Let a function return NaN and infinity where JAX is told to stop at them.

    Here they stand for what is not known or not there, and `jax_debug_nans` is for those
    that users make.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with jax.debug_nans(False), jax.debug_infs(False):
            return function(*args, **kwargs)

    wrapped: Any = run
    return wrapped


def automatic(function: Function) -> Function:
    """Let the compiler choose shardings inside of a function, whatever the mesh.

    On a mesh with explicit axes, which is what `jax.make_mesh` makes, JAX refuses operations
    whose result could be sharded in several ways, such as reshapes. These axes are automatic
    inside, and explicit again outside: the k-th result of a shape is sharded as the k-th
    argument of that shape, and replicated if there is none.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        given, fixed = eqx.partition((args, kwargs), eqx.is_array)
        shardings = [(x.shape, jax.typeof(x).sharding) for x in jax.tree.leaves(given)]
        mesh = next((s.mesh for _, s in shardings if s.mesh.explicit_axes), None)
        if mesh is None:
            return function(*args, **kwargs)
        rest = None  # of the results, what are no arrays

        def arrays(given: PyTree) -> PyTree:
            nonlocal rest
            args, kwargs = eqx.combine(given, fixed)
            results, rest = eqx.partition(function(*args, **kwargs), eqx.is_array)
            return results

        def placed(places: PyTree) -> Callable[[PyTree], PyTree]:
            axes = mesh.explicit_axes
            return jax.sharding.auto_axes(arrays, axes=axes, out_sharding=places)

        everywhere = NamedSharding(mesh, PartitionSpec())
        free = [each for each in shardings if each[1].mesh == mesh]

        def place(x: Any) -> Any:
            k = next((k for k, (shape, _) in enumerate(free) if shape == x.shape), None)
            return everywhere if k is None else free.pop(k)[1]

        places = jax.tree.map(place, jax.eval_shape(placed(everywhere), given))
        return eqx.combine(placed(places)(given), rest)

    wrapped: Any = run
    return wrapped
